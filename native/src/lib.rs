//! The native half of Postern's relay: what JavaScript can call. src/core/native.ts has the same as types of TypeScript.

#[cfg(target_os = "linux")]
mod crew;
#[cfg(target_os = "linux")]
mod flow;
#[cfg(target_os = "linux")]
mod many;
mod os;
#[cfg(target_os = "linux")]
mod pair;
#[cfg(target_os = "linux")]
mod relays;
#[cfg(target_os = "linux")]
mod session;

#[cfg(target_os = "linux")]
pub mod engine;

use std::io;

use napi_derive::napi;

use crate::os::peer;

/// Raised with every change of what JavaScript may expect.
const API_VERSION: u32 = 2;

#[napi(catch_unwind)]
pub fn api_version() -> u32 {
    API_VERSION
}

#[napi(object)]
pub struct PeerCredentials {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Who is at the other end of a unix socket.
#[napi(catch_unwind)]
pub fn peer_credentials(fd: i32) -> napi::Result<Option<PeerCredentials>, String> {
    let found = peer::credentials(fd).map_err(system)?;
    Ok(found.map(
        |peer::Credentials {
             pid,
             uid,
             gid,
             groups,
         }| PeerCredentials {
            pid,
            uid,
            gid,
            groups,
        },
    ))
}

#[cfg(target_os = "linux")]
#[napi(object)]
pub struct TcpOwner {
    pub uid: u32,
    pub inode: u32,
    pub state: u8,
}

/// Whose the socket is that is connected from `local` to `remote`, both on this machine: `127.0.0.1:5432`, `[::1]:5432`.
#[cfg(target_os = "linux")]
#[napi(catch_unwind)]
pub fn tcp_owner(local: String, remote: String) -> napi::Result<Option<TcpOwner>, String> {
    let address = |text: &str| {
        text.parse()
            .map_err(|_| system(io::Error::from_raw_os_error(libc::EINVAL)))
    };
    let found = os::diag::tcp_owner(address(&local)?, address(&remote)?).map_err(system)?;
    Ok(found.map(|os::diag::Owner { uid, inode, state }| TcpOwner { uid, inode, state }))
}

#[napi(object)]
pub struct KeepAlive {
    pub idle_seconds: u32,
    pub interval_seconds: u32,
    pub count: u32,
    pub user_timeout_ms: u32,
}

/// Probes of a TCP connection, with the settings that Node.js has none for.
#[napi(catch_unwind)]
pub fn set_keep_alive(fd: i32, settings: KeepAlive) -> napi::Result<(), String> {
    let KeepAlive {
        idle_seconds,
        interval_seconds,
        count,
        user_timeout_ms,
    } = settings;
    peer::set_keep_alive(
        fd,
        &peer::KeepAlive {
            idle_seconds,
            interval_seconds,
            count,
            user_timeout_ms,
        },
    )
    .map_err(system)
}

/// Two connected unix sockets, which the caller has to close.
#[napi(catch_unwind)]
pub fn socket_pair() -> napi::Result<Vec<i32>, String> {
    peer::socket_pair()
        .map(|(near, far)| vec![near, far])
        .map_err(system)
}

/// The system's number becomes the `code`, because its text is the only other thing there is, and depends on the language.
fn system(error: io::Error) -> napi::Error<String> {
    let code = error
        .raw_os_error()
        .map_or_else(|| format!("{:?}", error.kind()), |errno| format!("errno {errno}"));
    napi::Error::new(code, "the system refused".to_string())
}
