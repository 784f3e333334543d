//! The arguments of the profile.

/// The switches in the arguments of the profile.
#[derive(Default)]
pub struct Switches {
    /// `--no-resume`: neither advertises nor serves `session/resume`.
    pub no_resume: bool,
    /// `--no-load`: neither advertises nor serves `session/load`.
    pub no_load: bool,
    /// `--late-replay`: answers `session/load` with `null`, and replays the session afterwards.
    pub late_replay: bool,
    /// `--fail-initialize`: answers `initialize` with an error.
    pub fail_initialize: bool,
    /// `--hang-initialize`: never answers `initialize`.
    pub hang_initialize: bool,
    /// `--wrong-version`: answers `initialize` with a protocol version from the future.
    pub wrong_version: bool,
    /// `--gate-initialize NAME`: answers `initialize` when the gate is open.
    pub gate_initialize: Option<String>,
    /// `--hermes`: results of `session/new`, `load` and `resume` carry hermes' provenance.
    pub hermes: bool,
    /// `--exit-at-start CODE`: exits before it reads anything.
    pub exit_at_start: Option<i32>,
    /// `--exit-until NAME`: exits with 1 before it reads anything, until the gate is open.
    pub exit_until: Option<String>,
    /// `--outlives-eof`: stays when its stdin is closed.
    pub outlives_eof: bool,
    /// `--first-turn-marker`: the first turn of a session without history begins with a chunk
    /// `[first turn]`, so that a lost context shows.
    pub first_turn_marker: bool,
    /// `--journal-output`: the journal notes possible output of an attempt before it is written.
    pub journal_output: bool,
}

impl Switches {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut switches = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--no-resume" => switches.no_resume = true,
                "--no-load" => switches.no_load = true,
                "--late-replay" => switches.late_replay = true,
                "--fail-initialize" => switches.fail_initialize = true,
                "--hang-initialize" => switches.hang_initialize = true,
                "--wrong-version" => switches.wrong_version = true,
                "--hermes" => switches.hermes = true,
                "--outlives-eof" => switches.outlives_eof = true,
                "--journal-output" => switches.journal_output = true,
                "--first-turn-marker" => switches.first_turn_marker = true,
                "--gate-initialize" => {
                    let gate = arguments.next().ok_or("--gate-initialize wants a name")?;
                    switches.gate_initialize = Some(gate);
                }
                "--exit-until" => {
                    let gate = arguments.next().ok_or("--exit-until wants a name")?;
                    switches.exit_until = Some(gate);
                }
                "--exit-at-start" => {
                    let code = arguments.next().and_then(|code| code.parse().ok());
                    switches.exit_at_start = Some(code.ok_or("--exit-at-start wants a code")?);
                }
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        Ok(switches)
    }
}
