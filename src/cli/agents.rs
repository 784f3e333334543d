//! `greenroom agents check [NAME]`: starts the agents of profiles, one after the other, and reports
//! what they can do, or what is wrong and how to mend it. Needs no server and no database.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use actix::System;
use clap::Subcommand;
use greenroom_actors::{
    agent::{
        AgentLauncher,
        check::{Findings, Problem, ProblemKind, check},
        confine::Sandboxes,
    },
    pool::AgentPool,
    process::{
        child::{HEARTBEAT_EVERY, Heartbeat},
        environment::Environment,
        proc::{self, Marker},
        sandbox::{Kernel, Report},
    },
    profile::{CompactionMethod, Defaults, Profile, SandboxLevel},
};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::{
    ConfigFile,
    error::{CliError, Exit, INTERRUPT_EXIT},
    render,
};
use crate::{
    config::Config,
    text::{one_line, visible},
};

/// Characters of one line of the report.
const LINE_MAX: usize = 400;

/// What to do with the profiles of agents.
#[derive(Debug, Subcommand)]
pub enum Agents {
    /// Start agents as the server would and open a session: what they can do, or what is wrong
    Check {
        /// The profile [default: all profiles]
        name: Option<String>,
        #[command(flatten)]
        file: ConfigFile,
    },
}

/// Checks one profile, or all of them. The exit code is 1 if an agent cannot be used.
///
/// # Errors
///
/// The configuration is wrong or has no such profile, or no process can be prepared.
pub fn run(agents: &Agents, as_json: bool, out: &mut impl Write) -> Result<Exit, CliError> {
    let Agents::Check { name, file } = agents;
    let config = Config::load(file.config.as_deref(), None)?;
    let profiles: Vec<Arc<Profile>> = match name {
        Some(name) => vec![named(&config, name)?],
        None => config.agents.values().cloned().collect(),
    };
    // Before any thread starts.
    let environment = Environment::withdraw()?;
    proc::become_subreaper()?;
    let dir = Scratch::create()?;
    let path = env::var_os("PATH");
    let kernel = Kernel::probe(path.clone().unwrap_or_default(), profiles.iter().map(|it| &**it));
    let system = System::new();
    let mut exit = Exit::Done;
    for profile in profiles {
        let findings = system.block_on(async {
            let common = (environment.clone(), kernel.clone());
            let launcher = launcher(&config, common, &dir.0)?;
            let work = dir.0.join(&profile.name);
            let found = check(profile.clone(), launcher, work, path.as_deref());
            tokio::select! {
                found = found => Ok(Some(found)),
                interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| None),
            }
        })?;
        let Some(findings) = findings else {
            drop((system, dir));
            std::process::exit(INTERRUPT_EXIT);
        };
        if findings.problem.is_some() {
            exit = Exit::Failed;
        }
        let sandbox = kernel.report(&profile);
        let problem = findings.problem.as_ref();
        let remedy = problem.map(|problem| remedy(&profile, &findings, problem, &environment));
        let remedy = remedy.unwrap_or_default();
        if as_json {
            let found = (&findings, &sandbox);
            render::json_line(out, &to_json(&profile, &config.defaults, found, &remedy))?;
        } else {
            print(&profile, &config.defaults, (&findings, &sandbox), &remedy, out)?;
        }
        out.flush()?;
    }
    Ok(exit)
}

fn named(config: &Config, name: &str) -> Result<Arc<Profile>, CliError> {
    config.agents.get(name).cloned().ok_or_else(|| {
        let names: Vec<&str> = config.agents.keys().map(String::as_str).collect();
        CliError::Usage(format!("there is no agent {name:?}; known agents: {}", names.join(", ")))
    })
}

/// Launches as the server does. The marker is that of the check's own directory: no server that
/// starts meanwhile takes these processes for leftovers of its own.
fn launcher(
    config: &Config,
    (environment, kernel): (Environment, Kernel),
    dir: &Path,
) -> io::Result<AgentLauncher> {
    Ok(AgentLauncher {
        shim: "/proc/self/exe".into(),
        shim_args: vec!["shim".into()],
        heartbeat: Heartbeat::start(HEARTBEAT_EVERY)?,
        data: Marker::data(dir.display()),
        line_bytes_max: config.capacity.line_bytes_max,
        environment,
        open_files: getrlimit(Resource::Nofile).current,
        pool: AgentPool::start(1),
        counters: Default::default(),
        sandboxes: Arc::new(Sandboxes {
            kernel,
            data: dir.to_path_buf(),
            hidden: data_dir(config).into_iter().chain(config.hidden()).collect(),
            ports: [config.server.listen.port()].into(),
            home: env::home_dir(),
        }),
    })
}

/// Returns the server's data directory, if it exists.
fn data_dir(config: &Config) -> Option<PathBuf> {
    config.storage.path.parent()?.canonicalize().ok()
}

/// A directory for the agents to work in, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> io::Result<Self> {
        let name = format!("greenroom-check-{}", std::process::id());
        let dir = env::temp_dir().canonicalize()?.join(name);
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whatever an agent left there, the next check has another directory.
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns all detectors of the profile's compactions; ACP is always on.
fn detectors(profile: &Profile) -> Vec<Value> {
    [json!("acp")].into_iter().chain(profile.signals.iter().map(|signal| json!(signal))).collect()
}

fn to_json(
    profile: &Profile,
    defaults: &Defaults,
    (findings, sandbox): (&Findings, &Report),
    remedy: &str,
) -> Value {
    let Findings { agent, modes, problem, stderr, took_ms } = findings;
    let problem = problem.as_ref().map(
        |problem| json!({ "kind": problem.kind, "message": problem.message, "remedy": remedy }),
    );
    let mut compaction = json!(profile.compaction);
    compaction["detectors"] = json!(detectors(profile));
    compaction["auto_compact"] = json!(profile.auto_compact.unwrap_or(defaults.auto_compact));
    json!({
        "profile": profile.name,
        "ok": problem.is_none(),
        "took_ms": took_ms,
        "agent": agent,
        "permissions": { "policy": defaults.permission_policy, "modes": modes },
        "compaction": compaction,
        "sandbox": sandbox,
        "problem": problem,
        "stderr": stderr,
    })
}

fn print(
    profile: &Profile,
    defaults: &Defaults,
    (findings, report): (&Findings, &Report),
    remedy: &str,
    out: &mut impl Write,
) -> io::Result<()> {
    let name = &profile.name;
    let seconds = findings.took_ms as f64 / 1000.0;
    let mut line = |text: String| writeln!(out, "{}", one_line_kept(&text));
    match (&findings.problem, &findings.agent) {
        (None, agent) => {
            let agent = agent.clone().unwrap_or_default();
            let who = agent.name.unwrap_or("an agent without a name".into());
            let version = agent.version.unwrap_or("(no version)".into());
            line(format!("{name}: ok in {seconds:.1} s: {who} {version}"))?;
            line(format!("  sessions     {}", sessions(agent.load, agent.resume)))?;
            line(format!(
                "  prompts      {}",
                [&["text"], &agent.prompts[..]].concat().join(", ")
            ))?;
            line(format!("  permissions  {}", permissions(defaults, findings)))?;
            line(format!("  compaction   {}", compaction(profile, defaults)))?;
            line(format!("  sandbox      {}", sandbox(report)))
        }
        (Some(problem), agent) => {
            line(format!("{name}: cannot be used ({seconds:.1} s): {}", problem.message))?;
            if let Some(agent) = agent {
                for method in &agent.auth_methods {
                    let about = method.description.as_deref().unwrap_or_default();
                    line(format!("  login        {}: {about}", method.id))?;
                }
            }
            for text in &findings.stderr {
                line(format!("  stderr       {text}"))?;
            }
            line(format!("  remedy       {remedy}"))
        }
    }
}

/// Returns a line of the report without what a terminal would act on; it keeps its indentation.
fn one_line_kept(text: &str) -> String {
    let indent: String = text.chars().take_while(|c| *c == ' ').collect();
    let (label, rest) = text.trim_start().split_at_checked(13).unwrap_or((text, ""));
    match indent.is_empty() {
        true => one_line(text, LINE_MAX),
        false => format!("{indent}{}{}", visible(label), one_line(rest, LINE_MAX)),
    }
}

fn sessions(load: bool, resume: bool) -> &'static str {
    match (load, resume) {
        (true, true) => "load, resume",
        (true, false) => "load",
        (false, true) => "resume",
        (false, false) => "cannot be restored: a stopped agent forgets its conversation",
    }
}

fn permissions(defaults: &Defaults, findings: &Findings) -> String {
    let policy = json!(defaults.permission_policy);
    let policy = policy.as_str().map_or_else(|| policy.to_string(), str::to_owned);
    let modes = match &findings.modes {
        Some(modes) if !modes.available.is_empty() => {
            let current = modes.current.as_deref().unwrap_or("unknown");
            format!("the agent's mode is {current}, of {}", modes.available.join(", "))
        }
        _ => "the agent names no modes".into(),
    };
    format!("policy {policy}; {modes}")
}

fn compaction(profile: &Profile, defaults: &Defaults) -> String {
    let how = match &profile.compaction {
        CompactionMethod::Command { command } => format!("by its command {command}"),
        CompactionMethod::Rotate => "by a summary that opens a new session".into(),
        CompactionMethod::None => "cannot be ordered".into(),
    };
    let when = match profile.auto_compact.unwrap_or(defaults.auto_compact) {
        share if share > 0.0 => format!("ordered at {:.0} % of the context", share * 100.0),
        _ => "never ordered automatically".into(),
    };
    let detectors = detectors(profile);
    let detectors: Vec<&str> = detectors.iter().filter_map(Value::as_str).collect();
    format!("{how}; {when}; detected by {}", detectors.join(", "))
}

fn sandbox(report: &Report) -> String {
    if report.level == SandboxLevel::None {
        return "none: the agent has all rights of its user".into();
    }
    let level = report.level.name();
    let holds = report.holds.join(", ");
    match report.missing.join(", ") {
        missing if missing.is_empty() => format!("{level} holds {holds}"),
        missing => format!("{level} holds {holds}; this kernel cannot hold {missing}"),
    }
}

/// Returns what mends a problem.
fn remedy(
    profile: &Profile,
    findings: &Findings,
    problem: &Problem,
    environment: &Environment,
) -> String {
    let name = &profile.name;
    let args = profile.args.iter().map(|arg| format!(" {arg}")).collect::<String>();
    let by_hand = format!("run it by hand: {}{args}", profile.command.display());
    let what = match problem.kind {
        ProblemKind::CommandNotFound => {
            format!("install the agent, or set `command` of [agents.{name}] to its path")
        }
        ProblemKind::CannotStart => {
            format!(
                "check `command`, `rlimits`, `umask` and `sandbox_…` of [agents.{name}]; {by_hand}"
            )
        }
        ProblemKind::Exited => format!("see its stderr; {by_hand}"),
        ProblemKind::Timeout => format!(
            "set a longer `start_timeout` in [agents.{name}], or {by_hand}: it may wait for a \
             login or for the network"
        ),
        ProblemKind::AuthRequired => login(profile, findings),
        ProblemKind::Refused => format!("see its error; {by_hand}"),
        ProblemKind::Protocol => format!(
            "it may need an argument, such as --acp or acp, in `args` of [agents.{name}]; {by_hand}"
        ),
    };
    let unset: Vec<&str> =
        profile.env_pass.iter().map(String::as_str).filter(|key| !environment.has(key)).collect();
    match unset.is_empty() || problem.kind == ProblemKind::CommandNotFound {
        true => what,
        false => format!("{what}; not set here, of its `env_pass`: {}", unset.join(", ")),
    }
}

fn login(profile: &Profile, findings: &Findings) -> String {
    let name = &profile.name;
    let methods = findings.agent.iter().flat_map(|agent| &agent.auth_methods);
    let methods: Vec<&str> = methods.map(|method| method.id.as_str()).collect();
    let keys = format!("pass on its key by `env_pass` of [agents.{name}]");
    match &profile.auth_method {
        Some(method) => {
            format!("`auth_method` is {method}: {keys}, or log in with the agent's own command")
        }
        None if methods.is_empty() => format!("log in with the agent's own command, or {keys}"),
        None => format!(
            "log in with the agent's own command, or {keys}, and set `auth_method` to one of: {}",
            methods.join(", ")
        ),
    }
}
