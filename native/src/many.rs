//! One thread relays for many sessions. It waits for a readiness of any of their sockets (epoll, edge-triggered), and a session
//! at rest costs nothing but its few hundred bytes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use crate::flow::{Ends, Flow, Step, Until, Wire};
use crate::os::sockets::{
    BROKEN, Bell, FINISHED, NOTHING_READY, Poll, READABLE, Ready, Socket, WRITABLE, without_signals,
};
use crate::session::{Break, Event, Events, Session, Side, locked};

/// Read at once: what a session holds for a slow receiver is never more.
const BUFFER: usize = 64 * 1024;
const STACK: usize = 64 * 1024;
/// Changes taken from the kernel at once.
const BATCH: usize = 64;

/// The hold of JavaScript's thread on the one for the many.
pub struct Many {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    commands: Mutex<Vec<Command>>,
    bell: Bell,
}

enum Command {
    Adopt {
        session: Arc<Session>,
        from_client: Vec<u8>,
        from_upstream: Vec<u8>,
    },
    Close(Arc<Session>),
    Stop,
}

impl Many {
    pub fn start(events: Arc<Events>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            commands: Mutex::default(),
            bell: Bell::new()?,
        });
        let poll = Poll::new()?;
        poll.watch_bell(&shared.bell, BELL)?;
        let mut worker = Worker {
            poll,
            shared: Arc::clone(&shared),
            events,
            slots: Vec::new(),
            free: Vec::new(),
            buffer: vec![0; BUFFER],
        };
        let thread = without_signals(|| {
            Builder::new()
                .name("postern-relay".into())
                .stack_size(STACK)
                .spawn(move || worker.work())
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Both sockets must be non-blocking.
    pub fn adopt(&self, session: Arc<Session>, from_client: Vec<u8>, from_upstream: Vec<u8>) {
        self.command(Command::Adopt {
            session,
            from_client,
            from_upstream,
        });
    }

    /// For a session that was told to close: a socket that is closed already tells no readiness.
    pub fn close(&self, session: Arc<Session>) {
        self.command(Command::Close(session));
    }

    /// Ends what it relays, and waits for the thread.
    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.command(Command::Stop);
            // It catches its panics: there is nothing to hear.
            let _ = thread.join();
        }
    }

    fn command(&self, command: Command) {
        locked(&self.shared.commands).push(command);
        self.shared.bell.ring();
    }
}

const BELL: u64 = u64::MAX;

struct Worker {
    poll: Poll,
    shared: Arc<Shared>,
    events: Arc<Events>,
    slots: Vec<Option<Relayed>>,
    free: Vec<u32>,
    /// One for all: what was read is sent at once, and only what is not taken is kept by its session.
    buffer: Vec<u8>,
}

struct Relayed {
    session: Arc<Session>,
    flow: Flow,
    /// Which end broke off, but not what closing it ourselves looks like.
    broke: Option<Break>,
    /// JavaScript has heard that the upstream has finished, and that it has broken off.
    told: (bool, bool),
}

impl Worker {
    fn work(&mut self) {
        // A bug must not leave sessions that nobody moves: they end, and new ones are served.
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.end_all();
        }
    }

    fn serve(&mut self) {
        let mut ready = [NOTHING_READY; BATCH];
        loop {
            let count = self.poll.wait(&mut ready);
            let mut rung = false;
            for &Ready { events, u64: token } in &ready[..count] {
                if token == BELL {
                    rung = true;
                } else {
                    let side = if token & 1 == 0 {
                        Side::Client
                    } else {
                        Side::Upstream
                    };
                    self.on_ready((token >> 1) as u32, side, events);
                }
            }
            // Behind the batch: a slot that became free in it is not given away while the batch may still speak of it.
            if rung && !self.obey() {
                return;
            }
        }
    }

    /// Whether to go on.
    fn obey(&mut self) -> bool {
        self.shared.bell.silence();
        let commands = std::mem::take(&mut *locked(&self.shared.commands));
        for command in commands {
            match command {
                Command::Adopt {
                    session,
                    from_client,
                    from_upstream,
                } => {
                    self.adopt(session, Flow::new(from_client, from_upstream));
                }
                Command::Close(session) => {
                    let slot = session.slot.load(Relaxed);
                    let is_here = |relayed: &Relayed| Arc::ptr_eq(&relayed.session, &session);
                    if self.relayed(slot).is_some_and(is_here) {
                        self.end(slot);
                    }
                }
                Command::Stop => {
                    self.end_all();
                    return false;
                }
            }
        }
        true
    }

    fn adopt(&mut self, session: Arc<Session>, flow: Flow) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        session.slot.store(slot, Relaxed);
        let watched = [Side::Client, Side::Upstream]
            .iter()
            .try_for_each(|&side| self.poll.watch(session.socket(side), token(slot, side)));
        let failed = watched.err().and_then(|error| error.raw_os_error());
        let mut relayed = Relayed {
            session,
            flow,
            broke: None,
            told: (false, false),
        };
        if let Some(errno) = failed {
            // The kernel has no place for more: neither end's fault, but the client's connection cannot go on.
            relayed.broke = Some(Break {
                side: Side::Upstream,
                errno,
            });
        }
        self.slots[slot as usize] = Some(relayed);
        if failed.is_some() {
            self.end(slot);
        }
        // What is ready already, and be it to write, is told as the first change.
    }

    fn on_ready(&mut self, slot: u32, side: Side, ready: u32) {
        let Some(Some(relayed)) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if relayed.session.is_closing() {
            return self.end(slot);
        }
        let Relayed {
            session,
            flow,
            broke,
            told,
        } = relayed;
        let buffer = &mut self.buffer;
        let mut step = Step::Waits;
        if ready & WRITABLE != 0 && flow.has_backlog(side.other()) {
            // Its source was not read meanwhile, whatever readiness it told.
            step = flow.advance(&**session, side.other(), buffer, Until::Nothing);
        }
        if step != Step::Over && ready & (READABLE | FINISHED | BROKEN) != 0 {
            let until = if ready & (FINISHED | BROKEN) == 0 {
                Until::ShortRead
            } else {
                Until::Nothing
            };
            let next = flow.advance(&**session, side, buffer, until);
            if next != Step::Waits {
                step = next;
            }
        }
        if step != Step::Over && ready & BROKEN != 0 && flow.heeds_error(side) {
            let errno = session.socket(side).take_error();
            if errno != 0 {
                flow.break_off(side, errno);
                step = flow.advance(&**session, Side::Client, buffer, Until::Nothing);
            }
        }
        if session.is_closing() {
            return self.end(slot);
        }
        *broke = flow.broke();
        if step == Step::Over {
            return self.end(slot);
        }
        if flow.has_half_ended(Side::Upstream) && !std::mem::replace(&mut told.0, true) {
            self.events.push(Event::UpstreamEnded(session.id));
        }
        if flow.says_farewell() && !std::mem::replace(&mut told.1, true) {
            self.events.push(Event::Broke(session.id, Side::Upstream));
        }
        if step == Step::HasMore {
            for side in [Side::Client, Side::Upstream] {
                // A socket that is watched can be watched again: this allocates nothing.
                let _ = self.poll.watch_again(session.socket(side), token(slot, side));
            }
        }
    }

    fn end(&mut self, slot: u32) {
        let Some(Relayed { session, broke, .. }) = self.slots.get_mut(slot as usize).and_then(Option::take)
        else {
            return;
        };
        self.free.push(slot);
        for side in [Side::Client, Side::Upstream] {
            self.poll.forget(session.socket(side));
        }
        if broke.is_some_and(|broke| broke.side == Side::Client) {
            session.socket(Side::Upstream).reset_when_closed();
        }
        self.events.push(Event::Ended {
            session,
            broke,
            dedicated: false,
        });
    }

    fn end_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.end(slot as u32);
        }
    }

    fn relayed(&self, slot: u32) -> Option<&Relayed> {
        self.slots.get(slot as usize)?.as_ref()
    }
}

fn token(slot: u32, side: Side) -> u64 {
    u64::from(slot) << 1 | side as u64
}

impl Wire for Socket {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::receive(self, buffer)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::send(self, bytes)
    }

    fn finish(&self) {
        Self::finish(self);
    }
}

impl Ends for Session {
    type Wire = Socket;

    fn wire(&self, side: Side) -> &Socket {
        self.socket(side)
    }

    fn count(&self, from: Side, bytes: usize) {
        Self::count(self, from, bytes);
    }
}
