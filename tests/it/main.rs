//! greenroom from outside: the real server, scripted agents over real pipes, one module per
//! behaviour. Each test cites the rules it holds (the table of rules is in actors/core/README.md);
//! where none fits, it cites the section of the API.
//!
//! `IT_GREENROOM` names another build to test, such as a release build.

#![allow(clippy::unwrap_used)]

mod agent;
mod agent_auth;
mod agents_check;
mod auto_compaction;
mod backup;
mod broken_rows;
mod cancel;
mod cli_permissions;
mod cli_turn;
mod clocks;
mod compaction;
mod compaction_ends;
mod degraded;
mod digest;
mod empty_answer;
mod environment;
mod errors;
mod events;
mod expiry;
mod faults;
mod frames;
mod fuzz;
mod groups;
mod held;
mod hosts;
mod idempotency;
mod inspection;
mod interrupted;
mod isolation;
mod late_words;
mod lifecycle;
mod limits;
mod loads;
mod lock_wait;
mod locks;
mod logs;
mod metrics;
mod monitoring;
mod odd_messages;
mod older_database;
mod otlp;
mod pages;
mod permission_policy;
mod permissions;
mod processes;
mod prompt_blocks;
mod queue;
mod races;
mod residents;
mod restart;
mod restart_reads;
mod retention;
mod retry;
mod retry_task;
mod rotate;
mod routes;
mod sandbox;
mod scale;
mod sealing;
mod secrets;
mod segments;
mod sessions;
mod settings;
mod shortage;
mod snapshot;
mod starts;
mod storage;
mod turns;
mod verify;
mod wedge;

use greenroom_test_support as support;
