//! greenroom's actors: they own the clock, the child processes and the database.
//!
//! Every decision is [`greenroom_core`]'s: an actor makes core's facts durable, and then performs
//! its effects.

// Ends the process when an actor that cannot be rebuilt panics.
pub mod abort_on_panic;
// ACP lines ⇄ core's types.
pub mod acp;
// The actor of one run of one agent: its process, its output, its end.
pub mod agent;
// The clock of deadlines: it advances only while this process can run.
pub mod awake;
// The numbered status changes of all groups, kept for readers that reconnect.
pub mod changes;
// Wall clock, uptime and new ids.
pub mod clock;
// Where a test makes an actor of the real server panic.
mod failpoint;
// The actor of one group: it decides by core, commits, performs, and publishes.
pub mod group;
// Counters, gauges and histograms for Prometheus.
pub mod metrics;
// The pool of places for agents' processes.
pub mod pool;
// An agent's process tree: spawned, watched and ended.
pub mod process;
// Launch profiles, and the settings that all groups share.
pub mod profile;
// Projections of the log: replay, checkpoints, digests, retention, verification.
pub mod projections;
// How much the server as a whole holds, and may hold.
pub mod quota;
// The secret values of the configuration, and their redaction.
pub mod secrets;
// The database: its traits, the writer, the readers, and the handle to them.
pub mod storage;
// The parent of all groups: starts, rebuilds and drains them.
pub mod supervisor;
// Frames packed into blocks, and the live feed of them.
pub mod transcript;
// The groups whose rows still show the work of an earlier server.
pub mod unsettled;
// Logs which thread hangs.
pub mod watchdog;
// How an enumeration value is written in rows, logs and lists.
mod wire_name;
// Which directories an agent may work in, and how one is opened.
pub mod working_dir;
