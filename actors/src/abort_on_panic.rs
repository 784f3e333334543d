//! Ends the process if an actor panics that a running server cannot rebuild.

/// The exit code of a process that cannot continue: EX_SOFTWARE of sysexits.h, which no service
/// manager treats as a wrong configuration.
pub const EXIT: i32 = 70;

/// Held by such an actor, under the actor's name. If a panic drops it the process ends: everything
/// accepted is durable, the shims kill their trees, and the service manager restarts the server.
/// Otherwise the server would look alive and refuse everything (F3).
#[derive(Debug)]
pub struct AbortOnPanic(pub &'static str);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!(target: "greenroom", actor = self.0; "a vital actor panicked; ending");
            log::logger().flush();
            std::process::exit(EXIT);
        }
    }
}
