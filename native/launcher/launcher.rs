//! The program of the image: does what Node.js cannot do for itself, because it has to be done before Node.js starts,
//! and becomes Node.js. Without a shell in the image nothing else could.
//!
//!     rustc --edition 2024 -C opt-level=s -C panic=abort -C strip=symbols -C target-feature=+crt-static launcher.rs

use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const NODE: &str = given(option_env!("LAUNCHER_NODE"), "/usr/local/bin/node");
const MAIN: &str = given(option_env!("LAUNCHER_MAIN"), "/app/dist/main.js");
/// What `bin/postern` gives Node.js.
const FLAGS: [&str; 1] = ["--use-system-ca"];
/// Node.js takes no notice of a small memory limit: under one of 192 MiB its heap may grow to 259. At half of the limit a leak
/// is an error with a trace, and not a kill.
const HEAP: &str = "--max-old-space-size-percentage=50";

/// What the compiler was given, for the tests: at run time nothing can change what is started.
const fn given(path: Option<&'static str>, usual: &'static str) -> &'static str {
    match path {
        Some(path) => path,
        None => usual,
    }
}

/// Exit code of the program for a start that cannot be.
const CANNOT_START: u8 = 2;

fn main() -> ExitCode {
    if let Err(error) = forbid_core_dumps() {
        eprintln!("postern: core dumps cannot be switched off: {error}");
        return ExitCode::from(CANNOT_START);
    }
    let mut node = Command::new(NODE);
    node.args(FLAGS).arg(HEAP).arg(MAIN).args(env::args_os().skip(1));
    let mut taken: Vec<_> = env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| changes_the_program(name))
        .collect();
    if !taken.is_empty() {
        taken.sort();
        eprintln!(
            "postern: not obeyed in the image: {}",
            taken.join(OsStr::new(", ")).to_string_lossy()
        );
    }
    for name in &taken {
        node.env_remove(name);
    }
    let error = node.exec();
    eprintln!("postern: {NODE} cannot be started: {error}");
    ExitCode::from(CANNOT_START)
}

/// Whether a variable would have Node.js, its OpenSSL or the loader run, print or write down something before the first
/// line of the program: a debugger (NODE_OPTIONS), foreign code (LD_PRELOAD, OPENSSL_CONF), the headers of every
/// request (NODE_DEBUG). They come with an environment that was meant for another program. Whole families, because the
/// next release of Node.js may know more of them.
fn changes_the_program(name: &OsStr) -> bool {
    let name = name.as_bytes();
    // An additional CA is a matter of configuration, and documented.
    name != b"NODE_EXTRA_CA_CERTS"
        && (["NODE_", "LD_", "OPENSSL_"]
            .iter()
            .any(|family| name.starts_with(family.as_bytes()))
            || name == b"GLIBC_TUNABLES")
}

#[repr(C)]
struct ResourceLimit {
    soft: u64,
    hard: u64,
}

/// The same on x86-64 and arm64.
const RLIMIT_CORE: i32 = 4;

unsafe extern "C" {
    fn getrlimit(resource: i32, limit: *mut ResourceLimit) -> i32;
    fn setrlimit(resource: i32, limit: *const ResourceLimit) -> i32;
}

/// A core dump would hold every secret of the moment. The limit survives exec, is inherited and cannot be raised again.
fn forbid_core_dumps() -> std::io::Result<()> {
    let mut limit = ResourceLimit { soft: 0, hard: 0 };
    // SAFETY: the pointer is to a struct of the layout that the C library has on 64-bit Linux, alive during the call.
    if unsafe { getrlimit(RLIMIT_CORE, &mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // 0 forbids a file, but a core_pattern that is a pipe takes no notice of it; of 1 it does (fs/coredump.c), and one
    // byte is no file either. A hard limit of 0 cannot be raised to it.
    let one_byte = limit.hard.min(1);
    limit = ResourceLimit {
        soft: one_byte,
        hard: one_byte,
    };
    // SAFETY: as above; it is only read.
    if unsafe { setrlimit(RLIMIT_CORE, &limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
