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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::io::ErrorKind;

    use super::*;

    /// A connection that does what its script says: what can be read, in pieces, and how much it takes.
    #[derive(Default)]
    struct Scripted {
        to_read: RefCell<VecDeque<Piece>>,
        takes: Cell<usize>,
        send_error: Cell<i32>,
        sent: RefCell<Vec<u8>>,
        finished: Cell<u32>,
    }

    enum Piece {
        Bytes(Vec<u8>),
        End,
        Error(i32),
    }

    impl Wire for Scripted {
        fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut to_read = self.to_read.borrow_mut();
            match to_read.front_mut() {
                None => Err(ErrorKind::WouldBlock.into()),
                Some(Piece::End) => Ok(0),
                Some(Piece::Error(errno)) => {
                    let error = io::Error::from_raw_os_error(*errno);
                    // As the kernel does it: told once, and then there is an end.
                    to_read[0] = Piece::End;
                    Err(error)
                }
                Some(Piece::Bytes(bytes)) => {
                    let count = bytes.len().min(buffer.len());
                    buffer[..count].copy_from_slice(&bytes[..count]);
                    bytes.drain(..count);
                    if bytes.is_empty() {
                        to_read.pop_front();
                    }
                    Ok(count)
                }
            }
        }

        fn send(&self, bytes: &[u8]) -> io::Result<usize> {
            assert_eq!(self.finished.get(), 0, "sent behind its own end");
            if self.send_error.get() != 0 {
                return Err(io::Error::from_raw_os_error(self.send_error.get()));
            }
            let count = bytes.len().min(self.takes.get());
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.takes.set(self.takes.get() - count);
            self.sent.borrow_mut().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn finish(&self) {
            self.finished.set(self.finished.get() + 1);
        }
    }

    #[derive(Default)]
    struct Both([Scripted; 2], [Cell<usize>; 2]);

    impl Both {
        fn new() -> Self {
            let both = Self::default();
            for wire in &both.0 {
                wire.takes.set(usize::MAX);
            }
            both
        }

        fn can_read(&self, side: Side, piece: Piece) -> &Self {
            self.wire(side).to_read.borrow_mut().push_back(piece);
            self
        }

        fn sent_to(&self, side: Side) -> Vec<u8> {
            self.wire(side).sent.borrow().clone()
        }
    }

    impl Ends for Both {
        type Wire = Scripted;

        fn wire(&self, side: Side) -> &Scripted {
            &self.0[side as usize]
        }

        fn count(&self, from: Side, bytes: usize) {
            self.1[from as usize].set(self.1[from as usize].get() + bytes);
        }
    }

    use Piece::{Bytes, End, Error};
    use Side::{Client, Upstream};

    fn advance(flow: &mut Flow, both: &Both, from: Side, until: Until) -> Step {
        flow.advance(both, from, &mut [0; 16], until)
    }

    #[test]
    fn keeps_what_is_not_taken_and_reads_no_more_until_it_is() {
        let both = Both::new();
        let mut flow = Flow::new(Vec::new(), Vec::new());
        both.wire(Upstream).takes.set(5);
        both.can_read(Client, Bytes(vec![7; 40]));
        assert_eq!(advance(&mut flow, &both, Client, Until::ShortRead), Step::Waits);
        assert!(flow.has_backlog(Client));
        assert_eq!(both.1[Client as usize].get(), 16);
        both.wire(Upstream).takes.set(usize::MAX);
        assert_eq!(advance(&mut flow, &both, Client, Until::Nothing), Step::Waits);
        assert_eq!(both.sent_to(Upstream), vec![7; 40]);
        assert!(!flow.has_backlog(Client));
    }

    #[test]
    fn sends_what_was_read_before_first_and_the_end_last() {
        let both = Both::new();
        let mut flow = Flow::new(b"early ".to_vec(), Vec::new());
        both.can_read(Client, Bytes(b"late".to_vec()))
            .can_read(Client, End);
        assert_eq!(advance(&mut flow, &both, Client, Until::Nothing), Step::Waits);
        assert_eq!(both.sent_to(Upstream), b"early late");
        assert_eq!(both.wire(Upstream).finished.get(), 1);
        assert!(flow.has_half_ended(Client));
        both.can_read(Upstream, End);
        assert_eq!(advance(&mut flow, &both, Upstream, Until::Nothing), Step::Over);
        assert_eq!(flow.broke(), None);
    }

    #[test]
    fn holds_an_end_back_behind_a_backlog() {
        let both = Both::new();
        let mut flow = Flow::new(Vec::new(), Vec::new());
        both.wire(Client).takes.set(3);
        both.can_read(Upstream, Bytes(b"result".to_vec()))
            .can_read(Upstream, End);
        assert_eq!(advance(&mut flow, &both, Upstream, Until::Nothing), Step::Waits);
        assert_eq!(both.wire(Client).finished.get(), 0);
        both.wire(Client).takes.set(usize::MAX);
        assert_eq!(advance(&mut flow, &both, Upstream, Until::Nothing), Step::Waits);
        assert_eq!(
            (both.sent_to(Client), both.wire(Client).finished.get()),
            (b"result".to_vec(), 1)
        );
    }

    #[test]
    fn reads_the_last_words_of_an_upstream_found_broken_by_sending_to_it() {
        let both = Both::new();
        let mut flow = Flow::new(Vec::new(), Vec::new());
        both.wire(Upstream).send_error.set(libc::EPIPE);
        both.can_read(Client, Bytes(b"COMMIT".to_vec()));
        both.can_read(Upstream, Bytes(b"FATAL: this is why".to_vec()))
            .can_read(Upstream, End);
        assert_eq!(advance(&mut flow, &both, Client, Until::ShortRead), Step::Waits);
        assert_eq!(both.sent_to(Client), b"FATAL: this is why");
        assert_eq!(both.wire(Client).finished.get(), 1);
        assert_eq!(
            flow.broke(),
            Some(Break {
                side: Upstream,
                errno: libc::EPIPE
            })
        );
        assert!(flow.says_farewell());
        // The client goes on for a while: it is read, and nobody is told.
        both.can_read(Client, Bytes(vec![1; 100])).can_read(Client, End);
        assert_eq!(advance(&mut flow, &both, Client, Until::Nothing), Step::Over);
        assert!(both.sent_to(Upstream).is_empty());
        assert_eq!(both.wire(Upstream).finished.get(), 0);
    }

    #[test]
    fn does_not_call_a_reset_behind_a_goodbye_broken() {
        let both = Both::new();
        let mut flow = Flow::new(Vec::new(), Vec::new());
        both.can_read(Client, End)
            .can_read(Upstream, Error(libc::ECONNRESET));
        assert_eq!(advance(&mut flow, &both, Client, Until::Nothing), Step::Waits);
        assert_eq!(advance(&mut flow, &both, Upstream, Until::Nothing), Step::Over);
        assert_eq!((flow.broke(), both.wire(Client).finished.get()), (None, 1));
    }

    #[test]
    fn is_over_at_once_when_the_client_breaks_off() {
        for by_sending in [false, true] {
            let both = Both::new();
            let mut flow = Flow::new(Vec::new(), Vec::new());
            let from = if by_sending {
                both.wire(Client).send_error.set(libc::ECONNRESET);
                both.can_read(Upstream, Bytes(vec![1]));
                Upstream
            } else {
                both.can_read(Client, Error(libc::ECONNRESET));
                Client
            };
            assert_eq!(advance(&mut flow, &both, from, Until::ShortRead), Step::Over);
            assert_eq!(
                flow.broke(),
                Some(Break {
                    side: Client,
                    errno: libc::ECONNRESET
                })
            );
            assert_eq!(
                both.wire(Upstream).finished.get(),
                0,
                "a reset must not come behind an end in order"
            );
        }
    }

    #[test]
    fn lets_others_have_their_turn() {
        let both = Both::new();
        let mut flow = Flow::new(Vec::new(), Vec::new());
        both.can_read(Client, Bytes(vec![1; 16 * (ROUNDS + 1)]));
        assert_eq!(advance(&mut flow, &both, Client, Until::ShortRead), Step::HasMore);
        assert_eq!(advance(&mut flow, &both, Client, Until::Nothing), Step::Waits);
        assert_eq!(both.sent_to(Upstream).len(), 16 * (ROUNDS + 1));
    }

    /// A small generator of its own (xorshift), so that a failure can be repeated by its seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    #[test]
    fn carries_all_bytes_in_their_order_whatever_is_ready_when() {
        for seed in 1..=2_000_u64 {
            let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let both = Both::new();
            let mut flow = Flow::new(Vec::new(), Vec::new());
            let mut written = [Vec::new(), Vec::new()];
            let mut ended = [false, false];
            for wire in &both.0 {
                wire.takes.set(0);
            }
            let mut over = false;
            for turn in 0..400 {
                let side = if dice.below(2) == 0 { Client } else { Upstream };
                let last = turn > 300;
                match dice.below(4) {
                    0 if !ended[side as usize] && !last => {
                        let bytes: Vec<u8> = (0..dice.below(60) + 1).map(|_| dice.below(256) as u8).collect();
                        written[side as usize].extend_from_slice(&bytes);
                        both.can_read(side, Bytes(bytes));
                    }
                    1 if !ended[side as usize] && (last || dice.below(20) == 0) => {
                        ended[side as usize] = true;
                        both.can_read(side, End);
                    }
                    _ => both
                        .wire(side)
                        .takes
                        .set(if last { usize::MAX } else { dice.below(30) as usize }),
                }
                for from in [Client, Upstream] {
                    over = advance(&mut flow, &both, from, Until::Nothing) == Step::Over;
                }
                if over {
                    break;
                }
            }
            assert!(over, "seed {seed}");
            for from in [Client, Upstream] {
                assert_eq!(both.sent_to(from.other()), written[from as usize], "seed {seed}");
                assert_eq!(both.1[from as usize].get(), written[from as usize].len());
                assert_eq!(both.wire(from.other()).finished.get(), 1);
            }
        }
    }
}
