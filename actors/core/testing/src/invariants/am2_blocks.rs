//! AM-2: no prompt is sent with a block that the run's agent did not advertise.

use greenroom_core::{Fact, PromptCapabilities, Recorded};

use super::{Checked, Invariant, ensure};

/// The blocks that the agent of the live run takes, if it is ready and they are known.
#[derive(Default)]
pub struct Blocks(Option<PromptCapabilities>);

impl Invariant for Blocks {
    fn follows(&self) -> &'static [&'static str] {
        &["run_started", "run_ready"]
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::RunStarted { .. } => self.0 = None,
            Fact::RunReady { prompts, .. } => self.0 = *prompts,
            Fact::TurnStarted { task, prompt, .. } => {
                let refused = self.0.and_then(|taken| taken.refused(prompt));
                ensure!(refused.is_none(), "AM-2: {task} is started with {refused:?}");
            }
            // With the summary of the context that was left.
            Fact::PromptSent { prompt, .. } => {
                let refused = self.0.and_then(|taken| taken.refused(prompt));
                ensure!(refused.is_none(), "AM-2: a prompt is sent with {refused:?}");
            }
            _ => {}
        }
        Ok(())
    }
}
