//! What the threads and JavaScript's side both know of a session, and how the ones tell the other.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::os::sockets::Socket;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client = 0,
    Upstream = 1,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

/// Which end broke off, and with what error of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    pub side: Side,
    pub errno: i32,
}

/// The sockets live as long as anybody knows the session; the last to know it is JavaScript's thread, so nobody can ever meet
/// a descriptor that was closed and is somebody else's now.
#[derive(Debug)]
pub struct Session {
    pub id: u64,
    sockets: [Socket; 2],
    read: [AtomicU64; 2],
    closing: AtomicBool,
    /// Where the thread for the many keeps it.
    pub slot: AtomicU32,
}

impl Session {
    pub fn between(id: u64, client: RawFd, upstream: RawFd) -> io::Result<Self> {
        Ok(Self {
            id,
            sockets: [Socket::duplicate_of(client)?, Socket::duplicate_of(upstream)?],
            read: [AtomicU64::new(0), AtomicU64::new(0)],
            closing: AtomicBool::new(false),
            slot: AtomicU32::new(u32::MAX),
        })
    }

    pub fn socket(&self, side: Side) -> &Socket {
        &self.sockets[side as usize]
    }

    pub fn count(&self, from: Side, bytes: usize) {
        self.read[from as usize].fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes read from that side so far, callable at any time.
    pub fn counted(&self, from: Side) -> u64 {
        self.read[from as usize].load(Relaxed)
    }

    /// Ends both connections; whoever relays between them notices.
    pub fn close(&self) {
        self.closing.store(true, Relaxed);
        self.cut();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    pub fn cut(&self) {
        for socket in &self.sockets {
            socket.cut();
        }
    }
}

/// What JavaScript is to hear.
#[derive(Debug)]
pub enum Event {
    /// The upstream has finished, the client has not.
    UpstreamEnded(u64),
    /// One end has broken off; what can still be done for the other takes its time.
    Broke(u64, Side),
    /// No thread knows the session any more.
    Ended {
        session: Arc<Session>,
        broke: Option<Break>,
        dedicated: bool,
    },
}

/// From the threads to JavaScript: a queue, and a bell that is rung when it is no longer empty.
pub struct Events {
    queue: Mutex<Vec<Event>>,
    changed: Condvar,
    ring: Mutex<Option<Ring>>,
}

/// Callable on any thread.
pub type Ring = Box<dyn Fn() + Send + Sync>;

impl Events {
    pub fn new(ring: Ring) -> Self {
        Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
            ring: Mutex::new(Some(ring)),
        }
    }

    pub fn push(&self, event: Event) {
        let mut queue = locked(&self.queue);
        queue.push(event);
        let first = queue.len() == 1;
        drop(queue);
        self.changed.notify_all();
        if first && let Some(ring) = &*locked(&self.ring) {
            ring();
        }
    }

    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *locked(&self.queue))
    }

    /// Waits for an event when there is none.
    pub fn wait(&self, patience: Duration) {
        let queue = locked(&self.queue);
        // Whether it came or the patience ended, the caller looks itself.
        drop(
            self.changed
                .wait_timeout_while(queue, patience, |queue| queue.is_empty()),
        );
    }

    /// Nobody hears the bell any more.
    pub fn unhook(&self) {
        drop(locked(&self.ring).take());
    }
}

/// A thread that panicked while it held a lock has left nothing half-done behind it: all that is locked here is replaced whole.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
