//! Questions to single sockets that Node.js has no words for. The descriptors stay the caller's.

use std::io;
use std::mem::size_of;
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

/// The process that connected a unix socket, as the kernel saw it then.
#[derive(Debug, PartialEq, Eq)]
pub struct Credentials {
    /// 0 where the process is in a pid namespace that cannot be seen from here: another container of the pod.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// When a silent TCP connection is given up; 0 leaves a setting as it is.
pub struct KeepAlive {
    pub idle_seconds: u32,
    pub interval_seconds: u32,
    pub count: u32,
    pub user_timeout_ms: u32,
}

/// None where the other end is no process of this machine.
#[cfg(target_os = "linux")]
pub fn credentials(fd: RawFd) -> io::Result<Option<Credentials>> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    get(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut peer)?;
    // A socket that no process connected has pid 0, and no ids.
    if peer.uid == u32::MAX {
        return Ok(None);
    }
    Ok(Some(Credentials {
        pid: peer.pid,
        uid: peer.uid,
        gid: peer.gid,
        groups: groups(fd)?,
    }))
}

/// The kernel's own bound (NGROUPS_MAX).
#[cfg(target_os = "linux")]
const MOST_GROUPS: usize = 65_536;

#[cfg(target_os = "linux")]
fn groups(fd: RawFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut size = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes to the list, which is that long.
        let result = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut size,
            )
        };
        let count = size as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // It says how many there are.
            Some(libc::ERANGE) if count > groups.len() && count <= MOST_GROUPS => groups.resize(count, 0),
            _ => return Err(error),
        }
    }
}

/// None where the other end is no process of this machine.
#[cfg(target_os = "macos")]
pub fn credentials(fd: RawFd) -> io::Result<Option<Credentials>> {
    let (mut uid, mut gid, mut pid) = (0, 0, 0 as libc::pid_t);
    // SAFETY: both ids live until the call returns.
    if unsafe { libc::getpeereid(fd, &mut uid, &mut gid) } != 0 {
        let error = io::Error::last_os_error();
        return if matches!(
            error.raw_os_error(),
            Some(libc::EINVAL | libc::ENOTCONN | libc::EOPNOTSUPP)
        ) {
            Ok(None)
        } else {
            Err(error)
        };
    }
    get(fd, libc::SOL_LOCAL, libc::LOCAL_PEERPID, &mut pid)?;
    Ok(Some(Credentials {
        pid,
        uid,
        gid,
        groups: Vec::new(),
    }))
}

pub fn set_keep_alive(fd: RawFd, settings: &KeepAlive) -> io::Result<()> {
    #[cfg(target_os = "macos")]
    use libc::TCP_KEEPALIVE as TCP_KEEPIDLE;
    #[cfg(target_os = "linux")]
    use libc::TCP_KEEPIDLE;
    set(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set(fd, libc::IPPROTO_TCP, TCP_KEEPIDLE, settings.idle_seconds)?;
    set(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_KEEPINTVL,
        settings.interval_seconds,
    )?;
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, settings.count)?;
    #[cfg(target_os = "linux")]
    set(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_USER_TIMEOUT,
        settings.user_timeout_ms,
    )?;
    Ok(())
}

/// Two connected unix sockets, which the caller has to close.
pub fn socket_pair() -> io::Result<(RawFd, RawFd)> {
    let (near, far) = UnixStream::pair()?;
    Ok((near.into_raw_fd(), far.into_raw_fd()))
}

fn get<T>(fd: RawFd, level: i32, name: i32, value: &mut T) -> io::Result<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to the value, which is plain data of the option's own type.
    match unsafe { libc::getsockopt(fd, level, name, ptr::from_mut(value).cast(), &mut size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(fd: RawFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    if value == 0 {
        return Ok(());
    }
    let value = i32::try_from(value).unwrap_or(i32::MAX);
    // SAFETY: the kernel reads an int from the value.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
