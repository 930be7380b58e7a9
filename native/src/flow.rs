//! One session of the thread for the many: what to do with bytes, ends and errors. Knows sockets as `Wire` only.

use std::io::{self, ErrorKind::WouldBlock};

use crate::session::{Break, Side};

/// One of the two connections. Nothing here blocks: `WouldBlock` says that a readiness will be told.
pub trait Wire {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
    /// No more will be sent.
    fn finish(&self);
}

/// Both connections, and how many bytes were read from each.
pub trait Ends {
    type Wire: Wire;
    fn wire(&self, side: Side) -> &Self::Wire;
    fn count(&self, from: Side, bytes: usize);
}

/// Whether a read that does not fill the buffer proves that there is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The next bytes will be told as a new readiness.
    ShortRead,
    /// An end or an error lies behind the bytes, or readiness was told while nobody could act on it.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A readiness of either side will say when to go on.
    Waits,
    /// There is more, and others have waited long enough.
    HasMore,
    /// Both ways are done, or nothing is left to be done.
    Over,
}

/// Buffers read in a row before others have their turn.
const ROUNDS: usize = 8;

#[derive(Debug, Default)]
struct Way {
    /// Read and not yet taken by the other side; at most one buffer, and nothing is read while there is one.
    backlog: Vec<u8>,
    sent: usize,
    /// Its source has finished.
    ended: bool,
    /// The other side has been told so.
    passed_on: bool,
}

/// Both ways of a session.
#[derive(Debug)]
pub struct Flow {
    ways: [Way; 2],
    broke: Option<Break>,
    /// The upstream is gone: what the client still sends is read, so that closing will not reset it, and thrown away.
    discards: bool,
}

impl Flow {
    /// With what was read from either side before.
    pub fn new(from_client: Vec<u8>, from_upstream: Vec<u8>) -> Self {
        let way = |backlog| Way {
            backlog,
            ..Way::default()
        };
        Self {
            ways: [way(from_client), way(from_upstream)],
            broke: None,
            discards: false,
        }
    }

    pub fn broke(&self) -> Option<Break> {
        self.broke
    }

    /// This side has finished, the other has not.
    pub fn has_half_ended(&self, from: Side) -> bool {
        self.way(from).ended && !self.way(from.other()).ended
    }

    /// The upstream is gone, and what it said is still on its way to the client.
    pub fn says_farewell(&self) -> bool {
        self.discards
    }

    pub fn has_backlog(&self, from: Side) -> bool {
        !self.way(from).backlog.is_empty()
    }

    /// Moves what comes from that side, as far as it goes.
    pub fn advance(&mut self, ends: &impl Ends, from: Side, buffer: &mut [u8], until: Until) -> Step {
        let discarded = self.discards;
        let mut step = self.pump(ends, from, buffer, until);
        // Found out by sending to it: what it said before it broke off has not been read yet, and no readiness will tell.
        if step != Step::Over && self.discards && !discarded {
            let last_words = self.pump(ends, Side::Upstream, buffer, Until::Nothing);
            if last_words != Step::Waits {
                step = last_words;
            }
        }
        if self.is_over() { Step::Over } else { step }
    }

    /// Whether an error of that side that nobody has met yet matters now. What a broken server has said is read first, as the
    /// client takes it, and the error comes behind it.
    pub fn heeds_error(&self, side: Side) -> bool {
        side == Side::Client || self.way(side).ended
    }

    pub fn is_over(&self) -> bool {
        matches!(
            self.broke,
            Some(Break {
                side: Side::Client,
                ..
            })
        ) || self.ways.iter().all(|way| way.ended && way.passed_on)
    }

    fn pump(&mut self, ends: &impl Ends, from: Side, buffer: &mut [u8], until: Until) -> Step {
        let to = from.other();
        for _ in 0..ROUNDS {
            if let Err(error) = self.flush(ends, from) {
                if error.kind() == WouldBlock {
                    return Step::Waits;
                }
                self.break_off(to, errno(&error));
                if to == Side::Client {
                    return Step::Over;
                }
                continue;
            }
            let discards = self.discards && from == Side::Client;
            let way = &mut self.ways[from as usize];
            if way.ended {
                if !way.passed_on {
                    way.passed_on = true;
                    ends.wire(to).finish();
                }
                return Step::Waits;
            }
            match ends.wire(from).receive(buffer) {
                Ok(0) => way.ended = true,
                Ok(count) => {
                    ends.count(from, count);
                    if !discards && let Some(step) = self.pass(ends, from, &buffer[..count]) {
                        return step;
                    }
                    if until == Until::ShortRead && count < buffer.len() && !self.has_backlog(from) {
                        return Step::Waits;
                    }
                }
                Err(error) if error.kind() == WouldBlock => return Step::Waits,
                Err(error) => {
                    self.break_off(from, errno(&error));
                    if from == Side::Client {
                        return Step::Over;
                    }
                    self.ways[from as usize].ended = true;
                }
            }
        }
        Step::HasMore
    }

    /// Sends what was just read, and keeps what the other side does not take.
    fn pass(&mut self, ends: &impl Ends, from: Side, bytes: &[u8]) -> Option<Step> {
        let sent = match ends.wire(from.other()).send(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == WouldBlock => 0,
            Err(error) => {
                self.break_off(from.other(), errno(&error));
                return (from == Side::Upstream).then_some(Step::Over);
            }
        };
        if sent < bytes.len() {
            let way = &mut self.ways[from as usize];
            way.backlog = bytes[sent..].to_vec();
            way.sent = 0;
        }
        None
    }

    fn flush(&mut self, ends: &impl Ends, from: Side) -> io::Result<()> {
        let way = &mut self.ways[from as usize];
        while way.sent < way.backlog.len() {
            way.sent += ends.wire(from.other()).send(&way.backlog[way.sent..])?;
        }
        // Gives the memory back: most sessions are at rest most of the time.
        way.backlog = Vec::new();
        way.sent = 0;
        Ok(())
    }

    /// One end is gone. Of several errors the first is the cause.
    pub fn break_off(&mut self, side: Side, errno: i32) {
        match side {
            Side::Client => _ = self.broke.get_or_insert(Break { side, errno }),
            Side::Upstream => {
                // To a goodbye a reset is an answer like any other.
                if !self.way(Side::Client).ended {
                    self.broke.get_or_insert(Break { side, errno });
                }
                self.discards = true;
                let from_client = &mut self.ways[Side::Client as usize];
                from_client.backlog = Vec::new();
                from_client.sent = 0;
                // There is nobody left to be told.
                from_client.passed_on = true;
            }
        }
    }

    fn way(&self, from: Side) -> &Way {
        &self.ways[from as usize]
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}
