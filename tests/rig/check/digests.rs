//! Digests: always current, and sealed with the run (I6). `greenroom verify` compares them with the
//! frames.

use serde_json::Value;

use crate::history::{Group, History, text};

/// I6: the digest of each ended run has an outcome and the run's last frame; a group's digest has
/// all frames and all started turns that ended.
pub fn runs_are_sealed(history: &History) -> Vec<String> {
    let violations = |(name, group): (&String, &Group)| {
        let found = group.run_digests.iter().filter_map(|digest| unsealed(group, digest));
        let found: Vec<_> = found.chain(lagging_digest(group)).collect();
        found.into_iter().map(|what| format!("{name}: {what}")).collect::<Vec<_>>()
    };
    history.groups.iter().flat_map(violations).collect()
}

fn unsealed(group: &Group, digest: &Value) -> Option<String> {
    let run = text(digest, "run");
    let of_run = || group.frames.iter().filter(|frame| frame.run.as_deref() == Some(run));
    let exit = of_run().rfind(|frame| frame.is("run_exited"))?;
    let is_sealed = digest["outcome"].is_string()
        && digest["watermark_seq"] == exit.seq
        && digest["frame_count"] == of_run().count();
    (!is_sealed).then(|| format!("{run} ended with frame {}: {digest}", exit.seq))
}

/// A group may continue while it is read: its digest was read last.
fn lagging_digest(group: &Group) -> Option<String> {
    let last = group.frames.last()?.seq;
    let digest = &group.digest;
    let ended = |task: &&Value| task["kind"] == "turn" && task["seq_first"].is_u64();
    let turns = group.tasks.iter().filter(ended).filter(|task| task["ended_at"].is_string());
    let turns = turns.count() as u64;
    let is_current = digest["watermark_seq"].as_u64() >= Some(last)
        && digest["frame_count"].as_u64() >= Some(last)
        && digest["turn_count"].as_u64() >= Some(turns);
    (!is_current).then(|| format!("{last} frames and {turns} ended turns: {digest}"))
}
