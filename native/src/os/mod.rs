//! What is asked of the kernel. All unsafe code of this crate is below here, and nothing else is.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod diag;
pub mod peer;
#[cfg(target_os = "linux")]
pub mod sockets;
