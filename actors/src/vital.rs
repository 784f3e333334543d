//! What the server cannot go on without: actors that nobody rebuilds in a running process.

/// What a process ends with that cannot go on: EX_SOFTWARE of sysexits.h, which no service manager
/// takes for a wrong configuration.
pub const EXIT: i32 = 70;

/// Held by such an actor, under this name. If a panic drops it the process ends: everything
/// accepted is durable, the shims kill their trees, and whoever started the server starts it again.
/// Without that a server would stay that takes nothing and looks alive (RELIABILITY F3).
#[derive(Debug)]
pub struct Vital(pub &'static str);

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!(target: "greenroom", actor = self.0; "a vital actor panicked; ending");
            log::logger().flush();
            std::process::exit(EXIT);
        }
    }
}
