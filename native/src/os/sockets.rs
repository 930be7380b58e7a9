//! Sockets of the relay, and waiting for many of them.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// A stream socket of the relay's own: a duplicate, so that closing the original says nothing to the peer.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Fails for what is no stream socket: what JavaScript took for one may be anything.
    pub fn duplicate_of(fd: RawFd) -> io::Result<Self> {
        if option(fd, libc::SOL_SOCKET, libc::SO_TYPE)? != libc::SOCK_STREAM {
            return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
        }
        // SAFETY: F_DUPFD_CLOEXEC touches no memory of ours; a descriptor that is not open is an error.
        let duplicate = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(duplicate) }))
    }

    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is valid for writes of its own length.
        again(|| unsafe { libc::recv(self.fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the slice is valid for reads of its own length. Without MSG_NOSIGNAL a peer that is gone kills the process.
        again(|| unsafe { libc::send(self.fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
    }

    /// Sends a FIN behind everything that was sent. A socket whose peer is gone already needs none.
    pub fn finish(&self) {
        self.shutdown(libc::SHUT_WR);
    }

    /// Wakes who is blocked in `receive`: there is then nothing more to read than what the kernel has. Under TCP the peer hears
    /// nothing of it.
    pub fn stop_reading(&self) {
        self.shutdown(libc::SHUT_RD);
    }

    /// Wakes who is blocked in anything.
    pub fn cut(&self) {
        self.shutdown(libc::SHUT_RDWR);
    }

    fn shutdown(&self, how: i32) {
        // SAFETY: no memory is involved, and the descriptor is open as long as self lives.
        unsafe { libc::shutdown(self.fd(), how) };
    }

    /// Closing it will be a reset for the peer: the data was cut off, not finished.
    pub fn reset_when_closed(&self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: the option's value is a linger, valid for its own size. Where the transport knows no reset it does nothing.
        unsafe {
            libc::setsockopt(
                self.fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                ptr::from_ref(&linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            )
        };
    }

    /// The error that broke the connection and that nobody has been told yet, or 0.
    pub fn take_error(&self) -> i32 {
        option(self.fd(), libc::SOL_SOCKET, libc::SO_ERROR).unwrap_or(0)
    }

    /// TCP only: the connection is gone altogether, not just finished by the peer.
    pub fn is_closed(&self) -> bool {
        const TCP_CLOSE: u8 = 7;
        let mut state = 0u8;
        let mut size = 1 as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes, and tcp_info begins with the state. A unix socket is an error.
        let result = unsafe {
            libc::getsockopt(
                self.fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                ptr::from_mut(&mut state).cast(),
                &mut size,
            )
        };
        result == 0 && state == TCP_CLOSE
    }

    /// O_NONBLOCK belongs to the connection, not to the descriptor: nobody else may be using it any more.
    pub fn set_blocking(&self, blocking: bool) -> io::Result<()> {
        // SAFETY: both calls touch no memory of ours.
        let flags = check(unsafe { libc::fcntl(self.fd(), libc::F_GETFL) })?;
        let flags = if blocking {
            flags & !libc::O_NONBLOCK
        } else {
            flags | libc::O_NONBLOCK
        };
        // SAFETY: as above.
        check(unsafe { libc::fcntl(self.fd(), libc::F_SETFL, flags) })?;
        Ok(())
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Readiness of many sockets, told once for each change (edge-triggered).
pub struct Poll(OwnedFd);

pub type Ready = libc::epoll_event;

pub const READABLE: u32 = libc::EPOLLIN as u32;
pub const WRITABLE: u32 = libc::EPOLLOUT as u32;
/// The peer has finished.
pub const FINISHED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP) as u32;
pub const BROKEN: u32 = libc::EPOLLERR as u32;
const EDGES: u32 = READABLE | WRITABLE | (libc::EPOLLRDHUP | libc::EPOLLET) as u32;

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn watch(&self, socket: &Socket, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket.fd(), EDGES, token)
    }

    /// Tells once more what is ready now.
    pub fn watch_again(&self, socket: &Socket, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket.fd(), EDGES, token)
    }

    pub fn watch_bell(&self, bell: &Bell, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, bell.0.as_raw_fd(), READABLE, token)
    }

    pub fn forget(&self, socket: &Socket) {
        // One that was never watched is no error to anybody.
        let _ = self.control(libc::EPOLL_CTL_DEL, socket.fd(), 0, 0);
    }

    /// Waits for the next changes and returns how many there are. A signal counts as none.
    pub fn wait(&self, ready: &mut [Ready]) -> usize {
        // SAFETY: the kernel writes at most as many events as the slice has.
        let count =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), ready.as_mut_ptr(), ready.len() as i32, -1) };
        usize::try_from(count).unwrap_or(0)
    }

    fn control(&self, operation: i32, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the event lives until the call returns.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) })?;
        Ok(())
    }
}

pub const NOTHING_READY: Ready = Ready { events: 0, u64: 0 };

/// Wakes a thread that waits in `Poll`.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are read from a u64. The only failure, a counter near 2^64, rings too.
        unsafe { libc::write(self.0.as_raw_fd(), ptr::from_ref(&one).cast(), size_of::<u64>()) };
    }

    pub fn silence(&self) {
        let mut count = 0u64;
        // SAFETY: at most eight bytes are written to a u64. A bell that did not ring is EAGAIN.
        unsafe {
            libc::read(
                self.0.as_raw_fd(),
                ptr::from_mut(&mut count).cast(),
                size_of::<u64>(),
            )
        };
    }
}

/// Runs `start`, and every thread that it starts has all signals blocked: they are for JavaScript's own thread.
pub fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: a sigset_t of zeros is a valid value to be filled, and both sets live until the calls return.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the mask of this thread alone changes.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
    }
    let result = start();
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    result
}

fn option(fd: RawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to the i32.
    check(unsafe { libc::getsockopt(fd, level, name, ptr::from_mut(&mut value).cast(), &mut size) })?;
    Ok(value)
}

fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
