//! The environment that this process was started with: kept for its agents, then overwritten.
//!
//! It holds the agents' keys (C24). `/proc/PID/environ` shows the memory of the first environment,
//! whatever is unset later; what keeps agents out of it is [`super::proc::forbid_inspection`]. Here
//! the values themselves go: from that memory, so that not even root's tools show them, and from
//! the list that libraries and child processes read.

#![allow(unsafe_code)]

use std::{
    env,
    ffi::{CStr, OsStr, OsString, c_char},
    fmt, fs, io,
    os::unix::ffi::OsStrExt as _,
    sync::Arc,
};

/// What this process and its libraries read while it runs.
const KEPT: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TERM",
    "TZ",
    "TMPDIR",
    "SQLITE_TMPDIR",
    "GREENROOM_LOG",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
    "FAILPOINT",
];

unsafe extern "C" {
    /// The list of `NAME=value` texts of this process (environ(7)).
    static environ: *const *mut c_char;
}

/// The variables that this process was started with.
#[derive(Clone)]
pub struct Environment(Arc<[(OsString, OsString)]>);

impl fmt::Debug for Environment {
    /// Shows no value (C16).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Environment {
    /// Returns the variables of this process as they are now.
    pub fn current() -> Self {
        Self(env::vars_os().collect())
    }

    /// Returns the variables and their values, without those that are not UTF-8.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
    }

    /// Whether the variable is set.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(set, _)| set == name)
    }

    /// Returns [`Self::current`], and removes all variables from the process but those that it
    /// reads itself. Their values are overwritten.
    ///
    /// # Errors
    ///
    /// The process has other threads already, which may read its environment, or `/proc` cannot be
    /// read.
    pub fn withdraw() -> io::Result<Self> {
        let taken = Self::current();
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("a thread was started before the environment was read"));
        }
        // SAFETY: this thread is the only one, and no reference into the environment is held: what
        // `taken` has is a copy.
        unsafe {
            overwrite();
            for (name, _) in taken.0.iter().filter(|(name, _)| !is_kept(name)) {
                env::remove_var(name);
            }
        }
        Ok(taken)
    }
}

/// Overwrites the values of all variables that are not kept.
///
/// # Safety
///
/// No other thread runs, and no reference to a value is used afterwards.
unsafe fn overwrite() {
    // SAFETY: the list ends with a null pointer, and each of its texts with a zero byte; both are
    // this process's own memory, which it may write. Only bytes before the end of a text change.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let bytes = CStr::from_ptr(*entry).to_bytes();
            let length = bytes.len();
            if let Some(equals) = memchr::memchr(b'=', bytes)
                && !is_kept(OsStr::from_bytes(&bytes[..equals]))
            {
                (*entry).add(equals + 1).write_bytes(0, length - equals - 1);
            }
            entry = entry.add(1);
        }
    }
}

/// Whether this process reads the variable while it runs. Its HTTP client reads the proxies, and
/// libfaketime, under which it is tested, its settings.
fn is_kept(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    KEPT.contains(&&*name)
        || name.starts_with("LC_")
        || name.starts_with("FAKETIME")
        || name.to_ascii_lowercase().ends_with("_proxy")
}
