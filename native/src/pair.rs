//! Two threads relay for one session, one for each way, by blocking calls: two system calls for each message and no waiting for
//! readiness, which is the fastest relay there is (docs/decisions/0010-native-relay.md) as long as sessions are few.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::crew::Crew;
use crate::os::sockets::without_signals;
use crate::session::{Break, Event, Events, Session, Side, locked};

const BUFFER: usize = 32 * 1024;

/// The threads of all pairs: those that read from clients, and those that read from upstreams.
pub struct Crews([Crew; 2]);

impl Crews {
    pub fn new() -> Self {
        Self([Crew::new("postern-client"), Crew::new("postern-server")])
    }

    /// No thread waits for another session any more.
    pub fn dismiss(&self) {
        for crew in &self.0 {
            crew.dismiss();
        }
    }
}

/// What the two threads share. The last to leave tells JavaScript.
struct Pair {
    session: Arc<Session>,
    events: Arc<Events>,
    state: Mutex<State>,
    /// The upstream is gone: what the client still sends is read, so that closing will not reset it, and thrown away.
    discards: AtomicBool,
}

#[derive(Default)]
struct State {
    /// There is no second thread: somebody else relays.
    abandoned: bool,
    backlogs: [Vec<u8>; 2],
    ended: [bool; 2],
    broke: Option<Break>,
}

/// Returns what was read before when there are no threads to be had.
pub fn relay(
    crews: &Crews,
    session: &Arc<Session>,
    events: &Arc<Events>,
    backlogs: [Vec<u8>; 2],
) -> Result<(), [Vec<u8>; 2]> {
    let pair = Arc::new(Pair {
        session: Arc::clone(session),
        events: Arc::clone(events),
        state: Mutex::new(State {
            backlogs,
            ..State::default()
        }),
        discards: AtomicBool::new(false),
    });
    // Neither thread touches a socket before it has had this lock: they start both or not at all.
    let mut state = locked(&pair.state);
    let started = without_signals(|| {
        start(&pair, crews, Side::Client)?;
        start(&pair, crews, Side::Upstream)?;
        session.socket(Side::Client).set_blocking(true)?;
        session.socket(Side::Upstream).set_blocking(true)
    });
    if started.is_err() {
        state.abandoned = true;
        return Err(std::mem::take(&mut state.backlogs));
    }
    drop(state);
    leave(pair);
    Ok(())
}

fn start(pair: &Arc<Pair>, crews: &Crews, from: Side) -> io::Result<()> {
    let pair = Arc::clone(pair);
    crews.0[from as usize].start(Box::new(move || run(pair, from)))
}

fn run(pair: Arc<Pair>, from: Side) {
    let backlog = {
        let mut state = locked(&pair.state);
        if state.abandoned {
            return;
        }
        std::mem::take(&mut state.backlogs[from as usize])
    };
    if catch_unwind(AssertUnwindSafe(|| pair.carry(from, backlog))).is_err() {
        // A bug: the other way must not go on alone.
        pair.session.cut();
    }
    leave(pair);
}

/// Exactly one gets the pair itself: who leaves last.
fn leave(pair: Arc<Pair>) {
    if let Some(Pair {
        session,
        events,
        state,
        ..
    }) = Arc::into_inner(pair)
    {
        let broke = locked(&state).broke;
        events.push(Event::Ended {
            session,
            broke,
            dedicated: true,
        });
    }
}

/// Why a way stops.
enum Stop {
    Finished,
    Broke(Side, i32),
}

impl Pair {
    fn carry(&self, from: Side, backlog: Vec<u8>) {
        match self.copy(from, backlog) {
            Stop::Finished => self.finished(from),
            Stop::Broke(Side::Client, errno) => self.client_broke(from, errno),
            Stop::Broke(Side::Upstream, errno) => self.upstream_broke(from, errno),
        }
    }

    fn copy(&self, from: Side, backlog: Vec<u8>) -> Stop {
        let to = from.other();
        let (source, target) = (self.session.socket(from), self.session.socket(to));
        let send_all = |mut bytes: &[u8]| -> io::Result<()> {
            while !bytes.is_empty() {
                bytes = &bytes[target.send(bytes)?..];
            }
            Ok(())
        };
        if let Err(error) = send_all(&backlog) {
            return Stop::Broke(to, errno(&error));
        }
        drop(backlog);
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match source.receive(&mut buffer) {
                Ok(0) => return Stop::Finished,
                Ok(count) => count,
                Err(error) => return Stop::Broke(from, errno(&error)),
            };
            self.session.count(from, count);
            if from == Side::Client && self.discards.load(Relaxed) {
                continue;
            }
            if let Err(error) = send_all(&buffer[..count]) {
                return Stop::Broke(to, errno(&error));
            }
        }
    }

    fn finished(&self, from: Side) {
        if self.session.is_closing() {
            return;
        }
        let mut state = locked(&self.state);
        match from {
            Side::Client => {
                if matches!(
                    state.broke,
                    Some(Break {
                        side: Side::Client,
                        ..
                    })
                ) {
                    return;
                }
                // The other thread may have met the reset when it sent, and then this one sees an end. Before our own FIN an end
                // in order leaves the connection half open.
                if !state.ended[Side::Upstream as usize] && self.session.socket(Side::Client).is_closed() {
                    drop(state);
                    return self.client_broke(from, libc::ECONNRESET);
                }
                state.ended[from as usize] = true;
                if !self.discards.load(Relaxed) {
                    self.session.socket(Side::Upstream).finish();
                }
            }
            Side::Upstream => {
                state.ended[from as usize] = true;
                self.session.socket(Side::Client).finish();
                if !state.ended[Side::Client as usize] {
                    self.events.push(Event::UpstreamEnded(self.session.id));
                }
            }
        }
    }

    fn client_broke(&self, from: Side, errno: i32) {
        let mut state = locked(&self.state);
        if self.session.is_closing() {
            return;
        }
        let broke = *state.broke.get_or_insert(Break {
            side: Side::Client,
            errno,
        });
        if broke.side == Side::Client {
            self.session.socket(Side::Upstream).reset_when_closed();
        }
        // Wakes the other thread where it reads: it then finds the other connection gone. Where it sends to an upstream that
        // does not read, JavaScript loses patience.
        self.session.socket(from.other()).stop_reading();
        self.session.socket(from).stop_reading();
        drop(state);
        self.events.push(Event::Broke(self.session.id, Side::Client));
    }

    fn upstream_broke(&self, from: Side, errno: i32) {
        {
            let mut state = locked(&self.state);
            if self.session.is_closing() {
                return;
            }
            // To a goodbye a reset is an answer like any other.
            if !state.ended[Side::Client as usize] {
                state.broke.get_or_insert(Break {
                    side: Side::Upstream,
                    errno,
                });
            }
            self.discards.store(true, Relaxed);
        }
        // How long a client may take to read its last words is up to JavaScript.
        self.events.push(Event::Broke(self.session.id, Side::Upstream));
        match from {
            Side::Upstream => {
                locked(&self.state).ended[from as usize] = true;
                self.session.socket(Side::Client).finish();
            }
            Side::Client => {
                // What it said before is still read by the other thread, and then there is an end.
                self.session.socket(Side::Upstream).stop_reading();
                _ = self.copy(from, Vec::new());
            }
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}
