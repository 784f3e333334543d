//! The command line: what a person or a script types, and the exit code they get.

mod backup;
mod digest;
mod lists;
mod permissions;
pub mod render;
mod turn;
mod verify;
mod watch;

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use self::turn::is_terminal;
use crate::client::{Client, ClientError, DEFAULT_URL};
use crate::config::{Config, ConfigError, DEFAULT_FILE};
use crate::logs::{self, LogFormat};
use crate::{demo, demo_agent, serve};

/// Runs AI agents that speak ACP, one durable task queue a group, over HTTP.
#[derive(Debug, Parser)]
#[command(name = "greenroom", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done; of a task: completed (a compaction: or not needed)
  1    failed
  2    wrong usage or configuration
  3    the task was cancelled
  4    the task was interrupted: it was cut off after the agent may have acted
  5    the server cannot be reached, or refused
  130  Ctrl-C; a task that was begun goes on";

/// How to reach a server; for commands that ask one.
#[derive(Debug, Args)]
struct Remote {
    /// Server to ask; its token is taken from GREENROOM_TOKEN
    #[arg(long, global = true, env = "GREENROOM_URL", default_value = DEFAULT_URL)]
    url: String,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or Ctrl-C
    Serve {
        #[command(flatten)]
        file: ConfigFile,
        /// Address and port instead of the configured ones
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        /// How log lines look
        #[arg(long, value_enum, default_value = "text")]
        log_format: LogFormat,
    },
    /// Start a server, send its built-in agent some work, and show what happens
    Demo {
        /// Directory for the demo's data, made if need be [default: a fresh one under the temporary
        /// directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Give a group a turn and print the answer as it comes
    #[command(after_help = EXIT_CODES)]
    Turn {
        /// The group; one that does not exist yet is made, with the default agent
        group: String,
        /// The prompt; `-` reads it from stdin
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Compact a group's context, and wait for it
    #[command(after_help = EXIT_CODES)]
    Compact {
        /// The group
        group: String,
    },
    /// List the groups
    Groups,
    /// List a group's tasks, waiting and done
    Tasks {
        /// The group
        group: String,
    },
    /// Show what a group came to, or one run of its agent
    Digest {
        /// The group
        group: String,
        /// Only this run of it
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
    },
    /// Print what happens, as it happens: in one group, or the status of all
    Watch {
        /// The group; all of them if absent
        group: Option<String>,
    },
    /// Cancel a task
    Cancel {
        /// The task's id, as `tasks` prints it
        task: String,
    },
    /// Make an ended task again, as a new one: failed, interrupted or cancelled
    Retry {
        /// The task's id, as `tasks` prints it
        task: String,
    },
    /// Let a group claim no more work; what runs goes on
    Pause {
        /// The group
        group: String,
    },
    /// Let a group go on that is paused, held or degraded
    Resume {
        /// The group
        group: String,
    },
    /// End a group's agent now; the task in it is cancelled
    Stop {
        /// The group
        group: String,
    },
    /// List what agents want to be allowed, or answer it
    #[command(args_conflicts_with_subcommands = true)]
    Permissions {
        /// Only this group's
        #[arg(long)]
        group: Option<String>,
        #[command(subcommand)]
        answer: Option<permissions::Answer>,
    },
    /// Say what is wrong with the configuration; with --json, print it as it counts
    CheckConfig {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Fold the stored log again and compare it with every row; exit code 1 if anything differs
    Verify {
        /// The group; all of them if absent
        group: Option<String>,
        /// Make the group's rows from its log; the server must be stopped
        #[arg(long, requires = "group")]
        repair: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Copy the database, also while a server writes to it; FILE is complete or is not there
    Backup {
        /// Where to; it must not exist
        #[arg(value_name = "FILE")]
        target: PathBuf,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Be an ACP agent on stdio that needs no model, to try things with
    DemoAgent,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// Configuration file [default: config/greenroom.toml, if there is one]
    #[arg(long, value_name = "FILE", env = "GREENROOM_CONFIG")]
    config: Option<PathBuf>,
}

/// What the process ends with. Scripts rely on the numbers: [`EXIT_CODES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Cancelled = 3,
    Interrupted = 4,
    Unreachable = 5,
}

/// Exit code after Ctrl-C, as a shell has it.
const INTERRUPT_EXIT: i32 = 130;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Storage(String),
    #[error("{0}")]
    Serve(Box<dyn Error>),
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            CliError::Client(ClientError::BadUrl { .. })
            | CliError::Config(_)
            | CliError::Usage(_) => Exit::Usage,
            CliError::Client(_) => Exit::Unreachable,
            // Whoever read our output has enough of it, as `head` does.
            CliError::Io(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
            CliError::Io(_) | CliError::Storage(_) => Exit::Failed,
            CliError::Serve(error) if is_about_address(error.as_ref()) => Exit::Usage,
            CliError::Serve(_) => Exit::Failed,
        }
    }
}

/// Whether a server could not start because of the address it was configured to take (F32).
fn is_about_address(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable)
        })
    })
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = run(cli).unwrap_or_else(|error| {
        let exit = error.exit();
        if exit != Exit::Done {
            eprintln!("greenroom: {}", crate::text::clean(&error.to_string()));
        }
        exit
    });
    ExitCode::from(exit as u8)
}

fn run(Cli { remote, command }: Cli) -> Result<Exit, CliError> {
    let mut out = io::stdout();
    match command {
        Command::Serve { file, listen, log_format } => {
            let config = Config::load(file.config.as_deref(), listen.as_deref())?;
            logs::init(log_format);
            for warning in &config.warnings {
                log::warn!(target: "greenroom::config", "{warning}");
            }
            serve::run(config).map_err(CliError::Serve)?;
            Ok(Exit::Done)
        }
        Command::Demo { dir } => demo::run(dir),
        Command::Turn { group, text } => {
            turn::turn(&remote.client()?, &group, text, remote.json, &mut out)
        }
        Command::Compact { group } => {
            turn::compact(&remote.client()?, &group, remote.json, &mut out)
        }
        Command::Groups => lists::groups(&remote.client()?, remote.json, &mut out),
        Command::Tasks { group } => lists::tasks(&remote.client()?, &group, remote.json, &mut out),
        Command::Digest { group, run } => {
            digest::digest(&remote.client()?, &group, run.as_deref(), remote.json, &mut out)
        }
        Command::Watch { group } => {
            watch::watch(&remote.client()?, group.as_deref(), remote.json, &mut out)
        }
        Command::Cancel { task } => turn::cancel(&remote.client()?, &task, remote.json, &mut out),
        Command::Retry { task } => turn::retry(&remote.client()?, &task, remote.json, &mut out),
        Command::Pause { group } => {
            lists::control(&remote.client()?, &group, "pause", remote.json, &mut out)
        }
        Command::Resume { group } => {
            lists::control(&remote.client()?, &group, "resume", remote.json, &mut out)
        }
        Command::Stop { group } => {
            lists::control(&remote.client()?, &group, "stop", remote.json, &mut out)
        }
        Command::Permissions { group, answer } => match answer {
            Some(answer) => permissions::answer(&remote.client()?, &answer, remote.json, &mut out),
            None => permissions::list(&remote.client()?, group.as_deref(), remote.json, &mut out),
        },
        Command::CheckConfig { file } => check_config(&file, remote.json, &mut out),
        Command::Verify { group, repair, file } => {
            let config = Config::load(file.config.as_deref(), None)?;
            match group {
                Some(group) if repair => verify::repair(&config, &group, remote.json, &mut out),
                group => verify::run(&config, group.as_deref(), remote.json, &mut out),
            }
        }
        Command::Backup { target, file } => {
            let config = Config::load(file.config.as_deref(), None)?;
            backup::run(&config, &target, remote.json, &mut out)
        }
        Command::DemoAgent => {
            demo_agent::run()?;
            Ok(Exit::Done)
        }
    }
}

impl Remote {
    fn client(&self) -> Result<Client, ClientError> {
        let token = std::env::var("GREENROOM_TOKEN").ok().filter(|token| !token.is_empty());
        Client::new(&self.url, token)
    }
}

fn check_config(file: &ConfigFile, json: bool, out: &mut impl Write) -> Result<Exit, CliError> {
    let config = Config::load(file.config.as_deref(), None)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    if json {
        let value = serde_json::to_value(&config).map_err(io::Error::from)?;
        render::json_line(out, &value)?;
        return Ok(Exit::Done);
    }
    match &config.file {
        Some(file) => writeln!(out, "{}: ok", file.display())?,
        None => writeln!(out, "no {DEFAULT_FILE} here: the built-in defaults are ok")?,
    }
    Ok(Exit::Done)
}

#[cfg(test)]
#[path = "cli/tests.rs"]
mod tests;
