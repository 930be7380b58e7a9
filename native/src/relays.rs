//! The sessions, as JavaScript's thread sees them. It alone opens and closes descriptors.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::many::Many;
use crate::pair::{self, Crews};
use crate::session::{Break, Event, Events, Ring, Session, Side};

/// How long threads may take to end when they are told to: longer only if the kernel keeps one in a call that nothing ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Both kinds of relaying threads, and which session is whose.
pub struct Relays {
    many: Many,
    crews: Crews,
    events: Arc<Events>,
    sessions: HashMap<u64, Arc<Session>>,
    /// Sessions that may have two threads each at once, and those that have.
    dedicated: usize,
    pairs: usize,
    next_id: u64,
    /// Taken from the threads, not yet by JavaScript.
    reports: Vec<Report>,
    stopped: bool,
}

/// What JavaScript hears of one session.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub id: u64,
    pub what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// The upstream has finished, the client has not.
    UpstreamEnded,
    /// This end is gone; what the other is still owed takes its time.
    Broke(Side),
    /// Both descriptors are closed.
    Ended {
        broke: Option<Break>,
        closed_by_us: bool,
        bytes: [u64; 2],
    },
}

impl Relays {
    /// `ring` says, on any thread, that there is something to take.
    pub fn new(dedicated: usize, ring: Ring) -> io::Result<Self> {
        let events = Arc::new(Events::new(ring));
        Ok(Self {
            many: Many::start(Arc::clone(&events))?,
            crews: Crews::new(),
            events,
            sessions: HashMap::new(),
            dedicated,
            pairs: 0,
            next_id: 1,
            reports: Vec::new(),
            stopped: false,
        })
    }

    /// Duplicates both descriptors, which must be those of non-blocking stream sockets that nobody else reads any more.
    pub fn relay(
        &mut self,
        client: RawFd,
        upstream: RawFd,
        from_client: Vec<u8>,
        from_upstream: Vec<u8>,
    ) -> io::Result<u64> {
        if self.stopped {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        let id = self.next_id;
        let session = Arc::new(Session::between(id, client, upstream)?);
        self.next_id += 1;
        session.count(Side::Client, from_client.len());
        session.count(Side::Upstream, from_upstream.len());
        self.sessions.insert(id, Arc::clone(&session));

        let mut backlogs = [from_client, from_upstream];
        if self.pairs < self.dedicated {
            match pair::relay(&self.crews, &session, &self.events, backlogs) {
                Ok(()) => {
                    self.pairs += 1;
                    return Ok(id);
                }
                Err(unsent) => {
                    backlogs = unsent;
                    for side in [Side::Client, Side::Upstream] {
                        session.socket(side).set_blocking(false)?;
                    }
                }
            }
        }
        let [from_client, from_upstream] = backlogs;
        self.many.adopt(session, from_client, from_upstream);
        Ok(id)
    }

    /// An id that is not known, or not any more, is none of anybody's business.
    pub fn close(&self, id: u64) {
        if let Some(session) = self.sessions.get(&id) {
            session.close();
            self.many.close(Arc::clone(session));
        }
    }

    pub fn bytes(&self, id: u64) -> Option<[u64; 2]> {
        self.sessions.get(&id).map(|session| counted(session))
    }

    /// Everything that has happened since the last call. What has ended is closed and forgotten.
    pub fn take(&mut self) -> Vec<Report> {
        for event in self.events.take() {
            let report = match event {
                Event::UpstreamEnded(id) => Report {
                    id,
                    what: What::UpstreamEnded,
                },
                Event::Broke(id, side) => Report {
                    id,
                    what: What::Broke(side),
                },
                Event::Ended {
                    session,
                    broke,
                    dedicated,
                } => {
                    self.pairs -= usize::from(dedicated);
                    self.sessions.remove(&session.id);
                    let closed_by_us = session.is_closing();
                    let what = What::Ended {
                        broke,
                        closed_by_us,
                        bytes: counted(&session),
                    };
                    Report { id: session.id, what }
                }
            };
            self.reports.push(report);
        }
        std::mem::take(&mut self.reports)
    }

    /// Ends every session and every thread; what is still to be told can be taken.
    pub fn stop(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        for session in self.sessions.values() {
            session.close();
        }
        self.many.stop();
        self.crews.dismiss();
        let end = Instant::now() + PATIENCE;
        loop {
            self.reports = self.take();
            if self.sessions.is_empty() || Instant::now() >= end {
                break;
            }
            self.events.wait(end.saturating_duration_since(Instant::now()));
        }
        self.events.unhook();
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.stop();
    }
}

fn counted(session: &Session) -> [u64; 2] {
    [session.counted(Side::Client), session.counted(Side::Upstream)]
}

/// Carries a few bytes both ways, by both kinds of threads: a kernel that refuses what they need is found out before a client is.
pub fn self_test() -> io::Result<()> {
    for dedicated in [0, 1] {
        let (mut client, near) = UnixStream::pair()?;
        let (far, mut upstream) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let mut relays = Relays::new(dedicated, Box::new(|| {}))?;
        relays.relay(
            near.as_raw_fd(),
            far.as_raw_fd(),
            b"up".to_vec(),
            b"down".to_vec(),
        )?;
        drop((near, far));
        for (end, expected) in [(&mut upstream, &b"up"[..]), (&mut client, &b"down"[..])] {
            end.set_read_timeout(Some(PATIENCE))?;
            let mut heard = [0; 8];
            let heard = &mut heard[..expected.len()];
            end.read_exact(heard)?;
            if heard != expected {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        client.write_all(b"again")?;
        upstream.read_exact(&mut [0; 5])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    struct Outer {
        client: UnixStream,
        upstream: UnixStream,
        id: u64,
    }

    fn open(relays: &mut Relays) -> Outer {
        let (client, near) = UnixStream::pair().unwrap();
        let (far, upstream) = UnixStream::pair().unwrap();
        for socket in [&near, &far] {
            socket.set_nonblocking(true).unwrap();
        }
        for socket in [&client, &upstream] {
            socket.set_read_timeout(Some(LONG)).unwrap();
        }
        let id = relays
            .relay(near.as_raw_fd(), far.as_raw_fd(), Vec::new(), Vec::new())
            .unwrap();
        Outer { client, upstream, id }
    }

    fn started(dedicated: usize) -> (Relays, mpsc::Receiver<()>) {
        let (ring, rung) = mpsc::channel();
        (
            Relays::new(dedicated, Box::new(move || _ = ring.send(()))).unwrap(),
            rung,
        )
    }

    fn ends(relays: &mut Relays, rung: &mpsc::Receiver<()>, count: usize) -> Vec<Report> {
        let mut ended = Vec::new();
        while ended.len() < count {
            rung.recv_timeout(LONG).expect("the bell");
            ended.extend(
                relays
                    .take()
                    .into_iter()
                    .filter(|report| matches!(report.what, What::Ended { .. })),
            );
        }
        ended
    }

    fn ended(relays: &mut Relays) -> usize {
        relays
            .take()
            .iter()
            .filter(|report| matches!(report.what, What::Ended { .. }))
            .count()
    }

    #[test]
    fn tests_itself() {
        self_test().unwrap();
    }

    #[test]
    fn carries_much_both_ways_at_once_and_ends_in_order() {
        for dedicated in [0, 1] {
            let (mut relays, rung) = started(dedicated);
            let Outer { client, upstream, id } = open(&mut relays);
            const TOTAL: usize = 3_000_000;
            let write = |mut to: UnixStream| {
                thread::spawn(move || {
                    let bytes: Vec<u8> = (0..TOTAL).map(|at| (at % 251) as u8).collect();
                    for chunk in bytes.chunks(10_007) {
                        to.write_all(chunk).unwrap();
                    }
                    to.shutdown(Shutdown::Write).unwrap();
                })
            };
            let read = |mut from: UnixStream| {
                thread::spawn(move || {
                    let mut heard = Vec::new();
                    from.read_to_end(&mut heard).unwrap();
                    assert_eq!(heard.len(), TOTAL);
                    assert!(
                        heard
                            .iter()
                            .enumerate()
                            .all(|(at, &byte)| byte == (at % 251) as u8)
                    );
                })
            };
            let work = [
                write(client.try_clone().unwrap()),
                write(upstream.try_clone().unwrap()),
                read(client),
                read(upstream),
            ];
            for thread in work {
                thread.join().unwrap();
            }
            let what = What::Ended {
                broke: None,
                closed_by_us: false,
                bytes: [TOTAL as u64; 2],
            };
            assert_eq!(ends(&mut relays, &rung, 1), vec![Report { id, what }]);
            assert_eq!(relays.bytes(id), None);
        }
    }

    #[test]
    fn ends_each_session_once_whoever_cuts_it_when() {
        let (mut relays, rung) = started(8);
        const COUNT: u64 = 600;
        let mut sum = 0;
        for round in 0..COUNT {
            let Outer {
                mut client,
                mut upstream,
                id,
            } = open(&mut relays);
            client.set_nonblocking(true).unwrap();
            upstream.set_nonblocking(true).unwrap();
            for _ in 0..round % 5 {
                _ = client.write(&[1; 50_000]);
                _ = upstream.write(&[2; 50_000]);
            }
            match round % 4 {
                0 => drop(client),
                1 => drop(upstream),
                2 => relays.close(id),
                _ => {
                    relays.close(id);
                    drop((client, upstream));
                    relays.close(id);
                }
            }
            sum += ended(&mut relays);
        }
        while sum < COUNT as usize {
            // Those whose farewell waits for JavaScript's patience.
            for id in 1..=COUNT {
                relays.close(id);
            }
            _ = rung.recv_timeout(Duration::from_millis(100));
            sum += ended(&mut relays);
        }
        assert_eq!(sum, COUNT as usize);
        assert!(relays.sessions.is_empty());
        assert_eq!(relays.pairs, 0);
    }

    #[test]
    fn stopping_ends_all_and_leaves_their_ends_to_be_taken() {
        let (mut relays, _rung) = started(2);
        let outer: Vec<Outer> = (0..5).map(|_| open(&mut relays)).collect();
        relays.stop();
        let mut ids: Vec<u64> = relays.take().iter().map(|report| report.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, outer.iter().map(|session| session.id).collect::<Vec<_>>());
        for Outer {
            mut client,
            mut upstream,
            ..
        } in outer
        {
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            assert_eq!(upstream.read(&mut [0; 1]).unwrap(), 0);
        }
    }
}
