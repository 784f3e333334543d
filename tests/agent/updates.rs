//! The updates that a turn sends, as ACP has them.

use serde_json::{Value, json};

pub fn chunk(kind: &str, text: &str) -> Value {
    json!({ "sessionUpdate": kind, "content": { "type": "text", "text": text } })
}

/// A `usage_update`, with a cost or without.
pub fn usage_update(argument: &str) -> Option<Value> {
    let mut parts = argument.splitn(3, ':');
    let (used, size): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let mut update = json!({ "sessionUpdate": "usage_update", "used": used, "size": size });
    if let Some(cost) = parts.next() {
        let (amount, currency) = cost.split_once(':')?;
        let amount: f64 = amount.parse().ok()?;
        update["cost"] = json!({ "amount": amount, "currency": currency });
    }
    Some(update)
}

/// Returns the smallest update of a kind by ACP's schema.
pub fn update(kind: &str) -> Option<Value> {
    let mut update = match kind {
        "plan" => {
            json!({ "entries": [{ "content": "do", "priority": "low", "status": "pending" }] })
        }
        "tool_call_update" => json!({ "toolCallId": "earlier", "status": "completed" }),
        "available_commands_update" => json!({ "availableCommands": [] }),
        "current_mode_update" => json!({ "currentModeId": "code" }),
        "config_option_update" => json!({ "configOptions": [] }),
        "session_info_update" => json!({ "title": "scripted" }),
        _ => return None,
    };
    update["sessionUpdate"] = json!(kind);
    Some(update)
}
