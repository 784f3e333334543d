//! The command line: parses the arguments, runs one command, returns its exit code.

mod agents;
mod backup;
mod digest;
mod error;
mod lists;
mod permissions;
mod render;
mod turn;
mod verify;
mod waiting;
mod watch;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use greenroom_actors::process::environment::Environment;

use self::{
    error::{CliError, EXIT_CODES, Exit},
    waiting::Waiting,
};
use crate::{
    client::{Client, ClientError, DEFAULT_URL},
    config::{Config, DEFAULT_FILE},
    demo, demo_agent,
    logs::{self, LogFormat},
    serve, text,
};

/// Supervises AI agents that speak ACP: one durable task queue per group, over HTTP.
#[derive(Debug, Parser)]
#[command(name = "greenroom", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

/// How client commands reach the server.
#[derive(Debug, Args)]
struct Remote {
    /// URL of the server; the token is read from GREENROOM_TOKEN
    #[arg(long, global = true, env = "GREENROOM_URL", default_value = DEFAULT_URL)]
    url: String,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or Ctrl-C
    Serve {
        #[command(flatten)]
        file: ConfigFile,
        /// Address and port to listen on, instead of the configured ones
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        /// Format of the log lines
        #[arg(long, value_enum, default_value = "text")]
        log_format: LogFormat,
    },
    /// Start a server, submit work to its built-in agent, and show what happens
    Demo {
        /// Directory for the demo's data, created if missing [default: a new one under the
        /// temporary directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Submit a turn to a group and stream the agent's answer; stderr says what it waits for
    #[command(after_help = EXIT_CODES)]
    Turn {
        /// The group; created with the default agent if it does not exist
        group: String,
        /// The prompt; `-` reads it from stdin
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Compact a group's context and wait for the result; stderr says what it waits for
    #[command(after_help = EXIT_CODES)]
    Compact {
        /// The group
        group: String,
    },
    /// List the groups
    Groups,
    /// List a group's tasks: its queue and its history
    Tasks {
        /// The group
        group: String,
    },
    /// Show the digest of a group, or of one run of its agent
    Digest {
        /// The group
        group: String,
        /// Show only this run
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
    },
    /// Print events as they happen: the frames of one group, or the status changes of all; stderr
    /// says what the group's next task waits for
    Watch {
        /// The group [default: all groups]
        group: Option<String>,
    },
    /// Cancel a task
    Cancel {
        /// The task's id, as `tasks` prints it
        task: String,
    },
    /// Retry a failed, interrupted or cancelled task, as a new task
    Retry {
        /// The task's id, as `tasks` prints it
        task: String,
    },
    /// Pause a group: it starts no more tasks; a running task continues
    Pause {
        /// The group
        group: String,
    },
    /// Resume a group that is paused, held or degraded
    Resume {
        /// The group
        group: String,
    },
    /// Stop a group's agent now; its running task is cancelled
    Stop {
        /// The group
        group: String,
    },
    /// List pending permission requests, or answer one
    #[command(args_conflicts_with_subcommands = true)]
    Permissions {
        /// List only the requests of this group
        #[arg(long)]
        group: Option<String>,
        #[command(subcommand)]
        answer: Option<permissions::Answer>,
    },
    /// Check the configuration; with --json, print the effective values
    CheckConfig {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Check the agents of the profiles
    Agents {
        #[command(subcommand)]
        what: agents::Agents,
    },
    /// Replay the stored log and compare it with every row; exit code 1 if they differ
    Verify {
        /// The group [default: all groups]
        group: Option<String>,
        /// Rebuild the group's rows from its log; the server must be stopped
        #[arg(long, requires = "group")]
        repair: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Back up the database, also while a server writes to it; FILE is complete or absent
    Backup {
        /// Path of the copy; it must not exist
        #[arg(value_name = "FILE")]
        target: PathBuf,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Run an ACP agent on stdio that needs no model, for trying things out
    DemoAgent,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// Configuration file [default: config/greenroom.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "GREENROOM_CONFIG")]
    config: Option<PathBuf>,
}

/// Runs the command that this process's arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_json = cli.remote.json;
    let exit = run(cli).unwrap_or_else(|error| {
        let exit = error.exit();
        if is_json
            && let CliError::Client(ClientError::Problem { document: Some(problem), .. }) = &error
        {
            // A reader that is gone needs no problem.
            _ = render::json_line(&mut io::stdout(), problem);
        }
        if exit != Exit::Done {
            eprintln!("greenroom: {}", text::visible(&error.to_string()));
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
            serve::Refusal::check(&config).map_err(|err| CliError::Serve(err.into()))?;
            // Before the log's thread starts.
            let environment = Environment::withdraw()?;
            logs::init(log_format).map_err(|err| CliError::Serve(err.into()))?;
            for warning in &config.warnings {
                log::warn!(target: "greenroom::config", "{warning}");
            }
            let served = serve::run(config, environment).map_err(CliError::Serve);
            log::logger().flush();
            served.map(|()| Exit::Done)
        }
        Command::Demo { dir } => Ok(if demo::run(dir)? { Exit::Done } else { Exit::Failed }),
        Command::Turn { group, text } => {
            let client = remote.client()?;
            let waiting = Waiting::on_stderr(&client);
            turn::turn(&client, &group, text, remote.json, &mut out, &waiting)
        }
        Command::Compact { group } => {
            let client = remote.client()?;
            let waiting = Waiting::on_stderr(&client);
            turn::compact(&client, &group, remote.json, &mut out, &waiting)
        }
        Command::Groups => lists::groups(&remote.client()?, remote.json, &mut out),
        Command::Tasks { group } => lists::tasks(&remote.client()?, &group, remote.json, &mut out),
        Command::Digest { group, run } => {
            digest::digest(&remote.client()?, &group, run.as_deref(), remote.json, &mut out)
        }
        Command::Watch { group } => {
            let client = remote.client()?;
            let waiting = Waiting::on_stderr(&client);
            watch::watch(&client, group.as_deref(), remote.json, &mut out, &waiting)
        }
        Command::Cancel { task } => turn::cancel(&remote.client()?, &task, remote.json, &mut out),
        Command::Retry { task } => {
            let client = remote.client()?;
            let waiting = Waiting::on_stderr(&client);
            turn::retry(&client, &task, remote.json, &mut out, &waiting)
        }
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
        Command::Agents { what } => agents::run(&what, remote.json, &mut out),
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
    // A sandbox that cannot be made stops its profile's agents, and not the server.
    let absent = [config.missing(), config.without_sandbox()].concat();
    for warning in config.warnings.iter().chain(&absent) {
        eprintln!("warning: {}", text::visible(warning));
    }
    if json {
        render::json_line(out, &config.to_json())?;
        return Ok(Exit::Done);
    }
    match &config.file {
        Some(file) => writeln!(out, "{}: ok", file.display())?,
        None => writeln!(out, "no {DEFAULT_FILE} here: the built-in defaults apply, and are ok")?,
    }
    Ok(Exit::Done)
}

#[cfg(test)]
#[path = "cli/tests.rs"]
mod tests;
