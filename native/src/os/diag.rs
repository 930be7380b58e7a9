//! Whose a TCP connection of this machine is, asked of the kernel by sock_diag(7): one question, however many there are.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// The socket at one end of a connection, as the kernel knows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    /// 0: no process has it any more, and then `uid` means nothing.
    pub inode: u32,
    /// As in /proc/net/tcp; 1 is ESTABLISHED.
    pub state: u8,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
/// inet_diag_req_v2 and inet_diag_msg.
const REQUEST: usize = HEADER + 56;
const REPLY: usize = HEADER + 72;

/// Of the socket that has `local` as its own address and is connected to `remote`; None where there is none.
pub fn tcp_owner(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Owner>> {
    let socket = open()?;
    send(&socket, &question(local, remote))?;
    let mut reply = [0u8; 512];
    let length = receive(&socket, &mut reply)?;
    understand(&reply[..length], local.port(), remote.port())
}

fn question(local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST] {
    // A connection over IPv4 is found whatever kind of socket it has, and one over IPv6 that is IPv4 underneath only as IPv4.
    let (source, destination) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let mut bytes = [0u8; REQUEST];
    bytes[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    let request = &mut bytes[HEADER..];
    request[0] = if source.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    } as u8;
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].fill(0xff); // every state
    request[8..10].copy_from_slice(&local.port().to_be_bytes());
    request[10..12].copy_from_slice(&remote.port().to_be_bytes());
    put(&mut request[12..28], source);
    put(&mut request[28..44], destination);
    request[48..56].fill(0xff); // INET_DIAG_NOCOOKIE
    bytes
}

fn put(field: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(four) => field[..4].copy_from_slice(&four.octets()),
        IpAddr::V6(six) => field.copy_from_slice(&six.octets()),
    }
}

fn understand(reply: &[u8], local: u16, remote: u16) -> io::Result<Option<Owner>> {
    let strange = || io::Error::from(io::ErrorKind::InvalidData);
    let word = |at: usize| -> io::Result<u32> {
        let bytes = reply.get(at..at + 4).ok_or_else(strange)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    match (word(4)? & 0xffff) as u16 {
        NLMSG_ERROR => match -(word(HEADER)? as i32) {
            libc::ENOENT => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        SOCK_DIAG_BY_FAMILY if reply.len() >= REPLY => {
            let message = &reply[HEADER..];
            // Without the connection the kernel gives a listener of that port, if there is one.
            let same = message[4..6] == local.to_be_bytes() && message[6..8] == remote.to_be_bytes();
            Ok(same.then_some(Owner {
                state: message[1],
                uid: word(HEADER + 64)?,
                inode: word(HEADER + 68)?,
            }))
        }
        _ => Err(strange()),
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_SOCK_DIAG,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: zero is a valid value of every field.
    let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    kernel.nl_family = libc::AF_NETLINK as u16;
    // SAFETY: slice and address are valid for reads of their own lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            ptr::from_ref(&kernel).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The kernel answers before `send` returns, so there is nothing to wait for.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its own length.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn connected(listen: &str, to: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let near = TcpStream::connect((to, port)).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn names_the_owner_of_a_connection() {
        // SAFETY: no memory is involved.
        let own = unsafe { libc::geteuid() };
        for (listen, to) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
            ("127.0.0.1:0", "::ffff:127.0.0.1"),
        ] {
            let (near, far) = connected(listen, to);
            let owner = tcp_owner(far.peer_addr().unwrap(), far.local_addr().unwrap())
                .unwrap()
                .expect(listen);
            assert_eq!((owner.uid, owner.state), (own, 1));
            assert_ne!(owner.inode, 0);
            drop(near);
        }
    }

    #[test]
    fn says_nothing_of_a_connection_that_nobody_has() {
        let (near, far) = connected("127.0.0.1:0", "127.0.0.1");
        let (peer, local) = (far.peer_addr().unwrap(), far.local_addr().unwrap());
        drop(near);
        let owner = tcp_owner(peer, local).unwrap();
        assert!(owner.is_none_or(|owner| owner.inode == 0));
        drop(far);
        let never = SocketAddr::new(peer.ip(), 1);
        assert_eq!(tcp_owner(never, local).unwrap(), None);
    }

    #[test]
    fn does_not_take_a_listener_for_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = "127.0.0.1:9".parse().unwrap();
        assert_eq!(tcp_owner(listener.local_addr().unwrap(), nobody).unwrap(), None);
    }

    #[test]
    fn refuses_a_reply_that_is_cut_off() {
        for length in 0..REPLY {
            let mut reply = vec![0u8; length];
            if length >= 6 {
                reply[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            }
            assert!(understand(&reply, 1, 2).is_err());
        }
    }
}
