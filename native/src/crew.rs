//! Threads that stay for a moment when their work is done: a client that connects for each query has its session in the threads
//! of the one before, because making two threads and ending them costs more than such a session.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::Builder;
use std::time::Duration;

use crate::session::locked;

const STACK: usize = 64 * 1024;
/// How long a thread waits for work: threads that nobody needs are memory that nobody needs.
const PATIENCE: Duration = Duration::from_secs(1);

pub type Work = Box<dyn FnOnce() + Send>;

/// Threads of one name.
pub struct Crew {
    name: &'static str,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    called: Condvar,
}

/// There is never more work than threads that wait for it, so none of it waits for another one's end.
#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    waiting: usize,
    dismissed: bool,
}

impl Crew {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            shared: Arc::default(),
        }
    }

    /// Starts at once, in a thread that waits or in a new one; fails where there is neither. `work` must not panic.
    pub fn start(&self, work: Work) -> io::Result<()> {
        let mut state = locked(&self.shared.state);
        if state.waiting > state.work.len() {
            state.work.push_back(work);
            drop(state);
            self.shared.called.notify_one();
            return Ok(());
        }
        drop(state);
        let shared = Arc::clone(&self.shared);
        // Not joined: it holds nothing once its work is done, and the module is never unloaded (build.rs).
        Builder::new()
            .name(self.name.into())
            .stack_size(STACK)
            .spawn(move || shared.serve(work))?;
        Ok(())
    }

    /// Whoever waits goes home, and nobody waits any more.
    pub fn dismiss(&self) {
        locked(&self.shared.state).dismissed = true;
        self.shared.called.notify_all();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.dismiss();
    }
}

impl Shared {
    fn serve(&self, first: Work) {
        let mut work = Some(first);
        while let Some(now) = work {
            now();
            work = self.next();
        }
    }

    fn next(&self) -> Option<Work> {
        let mut state = locked(&self.state);
        state.waiting += 1;
        let (mut state, _) = self
            .called
            .wait_timeout_while(state, PATIENCE, |state| state.work.is_empty() && !state.dismissed)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        state.waiting -= 1;
        // Also for one whose patience has just ended: it was counted on.
        state.work.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn report(crew: &Crew) -> mpsc::Receiver<thread::ThreadId> {
        let (tell, told) = mpsc::channel();
        crew.start(Box::new(move || tell.send(thread::current().id()).unwrap()))
            .unwrap();
        told
    }

    fn until(crew: &Crew, waiting: usize) {
        let end = std::time::Instant::now() + LONG;
        while locked(&crew.shared.state).waiting != waiting {
            assert!(std::time::Instant::now() < end, "as many threads that wait");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn gives_work_to_a_thread_that_waits() {
        let crew = Crew::new("crew-test");
        let mut reused = false;
        // A machine that is busy enough may let the patience of one end between two calls.
        for _ in 0..20 {
            let first = report(&crew).recv_timeout(LONG).unwrap();
            until(&crew, 1);
            reused |= report(&crew).recv_timeout(LONG).unwrap() == first;
            if reused {
                break;
            }
        }
        assert!(reused);
    }

    #[test]
    fn lets_no_work_wait_for_the_end_of_another() {
        let crew = Crew::new("crew-test");
        report(&crew).recv_timeout(LONG).unwrap();
        let gates: Vec<_> = (0..8)
            .map(|_| {
                let (open, gate) = mpsc::channel::<()>();
                let (tell, begun) = mpsc::channel();
                crew.start(Box::new(move || {
                    tell.send(()).unwrap();
                    _ = gate.recv();
                }))
                .unwrap();
                (open, begun)
            })
            .collect();
        for (_, begun) in &gates {
            begun.recv_timeout(LONG).unwrap();
        }
    }

    #[test]
    fn does_each_work_once_while_threads_come_and_go() {
        let crew = Crew::new("crew-test");
        let (tell, told) = mpsc::channel();
        for number in 0..2000 {
            let tell = tell.clone();
            crew.start(Box::new(move || tell.send(number).unwrap())).unwrap();
            if number % 7 == 0 {
                thread::yield_now();
            }
        }
        let mut heard: Vec<u32> = (0..2000).map(|_| told.recv_timeout(LONG).unwrap()).collect();
        heard.sort_unstable();
        assert_eq!(heard, (0..2000).collect::<Vec<_>>());
    }

    #[test]
    fn sends_home_whoever_waits_when_it_is_dismissed_or_has_had_nothing_to_do() {
        let crew = Crew::new("crew-test");
        report(&crew).recv_timeout(LONG).unwrap();
        until(&crew, 0);
        report(&crew).recv_timeout(LONG).unwrap();
        crew.dismiss();
        until(&crew, 0);
        let shared = Arc::clone(&crew.shared);
        drop(crew);
        let end = std::time::Instant::now() + LONG;
        while Arc::strong_count(&shared) > 1 {
            assert!(std::time::Instant::now() < end, "the threads to have ended");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
