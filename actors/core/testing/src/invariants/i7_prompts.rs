//! I7, AM-2: what is sent is the caller's prompt, for a compaction the prompt of the profile in
//! force; and until the agent had output, with the summary of the context that was left.

use std::{collections::BTreeMap, rc::Rc};

use greenroom_core::{
    Compaction, CompactionStatus, EndReason, Fact, Json, Recorded, Strategy, TaskId, TaskKind, Work,
};

use super::{Begun, Checked, Invariant, Played, ensure, record};

/// Only worlds know the callers' prompts.
#[derive(Default)]
pub struct Prompts {
    step: Option<Rc<Begun>>,
    tasks: BTreeMap<TaskId, Prompt>,
    /// The summary that the next prompt has to carry.
    summary: Option<String>,
    had_output: bool,
}

struct Prompt {
    kind: TaskKind,
    blocks: Json,
    /// The strategy of a compaction: at acceptance, then of its last attempt.
    strategy: Option<Strategy>,
}

impl Prompts {
    fn turn_started(&mut self, task: TaskId, prompt: &Json, strategy: Option<Strategy>) -> Checked {
        let order = self.step.as_ref().and_then(|step| step.settings.compaction.clone());
        let known = self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is unknown"))?;
        if known.kind == TaskKind::Compaction {
            let order = order.ok_or_else(|| format!("{task} has no way to compact"))?;
            let (accepted, way) = (known.strategy, strategy.or(known.strategy));
            ensure!(way == Some(order.strategy), "{task} was {accepted:?}, is {way:?}");
            (known.blocks, known.strategy) = (order.prompt(None), way);
        }
        ensure!(*prompt == known.blocks, "AM-2: not the prompt of {task}");
        Ok(())
    }

    fn compaction_ended(&mut self, compaction: &Compaction) -> Checked {
        if compaction.status == CompactionStatus::Completed && compaction.carries_summary {
            self.summary.clone_from(&compaction.details.summary);
            ensure!(self.summary.is_some(), "I7: {} carries no summary", compaction.id);
        }
        Ok(())
    }
}

impl Invariant for Prompts {
    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
    }

    fn fact(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        if self.step.is_none() {
            return Ok(());
        }
        match fact {
            Fact::TaskQueued { task, kind, record: accepted, .. } => {
                let accepted = record(*task, accepted).ok_or("a record of another task")?;
                let strategy = match accepted.work {
                    Work::Compaction { strategy, .. } => Some(strategy),
                    Work::Turn { .. } => None,
                };
                let prompt = Prompt { kind: *kind, blocks: accepted.prompt().clone(), strategy };
                self.tasks.insert(*task, prompt);
            }
            Fact::TurnStarted { task, prompt, strategy, .. } => {
                self.turn_started(*task, prompt, *strategy)?;
            }
            Fact::PromptSent { prompt, .. } => {
                let known = place.task.and_then(|task| self.tasks.get(&task));
                let known = known.ok_or("AM-2: a prompt of no task")?;
                let summary = self.summary.as_deref().filter(|_| known.kind == TaskKind::Turn);
                check_blocks(prompt, &known.blocks, summary)?;
                self.had_output = false;
            }
            Fact::AgentOutput(output) if output.late.is_none() => {
                self.had_output |= output.summary.has_output;
            }
            Fact::AgentOutputRejected { .. } => self.had_output |= fact.is_bare_output(),
            Fact::RequestRefused { .. }
            | Fact::SegmentEnded { end_reason: EndReason::AcpSessionIdChanged, .. } => {
                self.had_output = true;
            }
            // The agent only pretended to work.
            Fact::AgentWedged { .. } => self.had_output = false,
            Fact::CompactionEnded(ended) => self.compaction_ended(ended)?,
            Fact::TurnSettled { task, .. } if self.had_output => {
                let is_turn = self.tasks.get(task).is_some_and(|it| it.kind == TaskKind::Turn);
                self.summary = self.summary.take().filter(|_| !is_turn);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let pending = &step.group.state().pending_summary;
        ensure!(self.summary == *pending, "I7: {:?} is pending, not {pending:?}", self.summary);
        Ok(())
    }
}

/// Checks that `sent` is the caller's prompt after the session's summary, if there is one.
fn check_blocks(sent: &Json, prompt: &Json, summary: Option<&str>) -> Checked {
    let Some(summary) = summary else {
        ensure!(sent == prompt, "AM-2: not the caller's prompt: {sent:?}");
        return Ok(());
    };
    let blocks = |json: &Json| serde_json::from_str::<Vec<serde_json::Value>>(json.as_str());
    let (sent, prompt) = (blocks(sent).map_err(|e| e.to_string())?, blocks(prompt));
    let prompt = prompt.map_err(|e| e.to_string())?;
    let (first, rest) = sent.split_first().ok_or("AM-2: nothing is sent")?;
    ensure!(rest == prompt, "AM-2: not the caller's blocks: {rest:?}");
    let text = first["text"].as_str().unwrap_or_default();
    ensure!(text.contains(summary), "I7: {summary:?} is not carried: {text:?}");
    Ok(())
}
