//! Frames: numbered without a gap, and never changed (I3).

use std::collections::{HashMap, HashSet};

use crate::history::History;

/// I3: `seq` has no gap, and every frame that a reader received is there at the end, byte for byte;
/// no reader gets a frame twice.
pub fn frames_stay(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut texts: HashMap<(&str, u64), &str> = HashMap::new();
    for (name, group) in &history.groups {
        for (expected, frame) in (1..).zip(&group.frames) {
            if frame.seq != expected {
                wrong.push(format!("{name}: frame {} stands where {expected} should", frame.seq));
                break;
            }
            texts.insert((name, frame.seq), &frame.text);
        }
    }
    let mut seen_before: HashSet<(&str, u64)> = HashSet::new();
    for seen in &history.seen {
        let Some(group) = history.groups.get(&seen.group) else { continue };
        // Frames after the final reading: the end of a run at the server's shutdown.
        let last = group.frames.last().map_or(0, |frame| frame.seq);
        if last < seen.seq && group.read_at < seen.at {
            continue;
        }
        let key = (seen.group.as_str(), seen.seq);
        let there = texts.get(&key).copied().unwrap_or("nothing");
        if there != seen.text {
            let (group, seq, life, text) = (&seen.group, seen.seq, seen.life, &seen.text);
            wrong
                .push(format!("{group}: a reader saw in life {life} {text}, and {seq} is {there}"));
        }
        if !seen_before.insert(key) {
            wrong.push(format!("{}: frame {} came twice to a reader", seen.group, seen.seq));
        }
    }
    wrong
}
