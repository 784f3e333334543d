//! What agents and callers say, as the rules get to see it.

use greenroom_core::{
    CompactionOrder, Cost, Details, Exit, ExitReason, Fold, Json, Kinds, Lineage, Lines,
    OnInterrupt, PermissionAsked, PermissionOption, PermissionPolicy, PermissionShown, Policy,
    Provenance, Retry, Settings, Signal, Source, Spent, Strategy, Terms, Tokens, ToolNews,
    ToolResult, ToolStep, Usage,
};

use super::{
    LIMITS,
    moves::{Asked, Seen, Spoken},
};

/// What a hermes says that lost track after a cancel.
const QUEUED: &str = "Queued for the next turn. (1 queued)";

/// One of a few settings; the agent and the directory differ.
pub fn settings(number: u8) -> Settings {
    let (number, more) = (number % 4, number / 4);
    Settings {
        agent: if number < 2 { "one" } else { "two" }.into(),
        cwd: Some(if number == 3 { "/b" } else { "/a" }.into()),
        title: (number == 1).then(|| "titled".to_owned()),
        on_interrupt: ON_INTERRUPT.get(usize::from(more % 4).wrapping_sub(1)).copied(),
        permission_policy: (more / 4 % 4 > 0).then(|| policy(more / 4)),
        ..Settings::default()
    }
}

const ON_INTERRUPT: [OnInterrupt; 3] =
    [OnInterrupt::Continue, OnInterrupt::Hold, OnInterrupt::Auto];

fn policy(number: u8) -> PermissionPolicy {
    let edits = |default, edits| {
        let kinds = [("edit".to_owned(), edits), ("other".to_owned(), Policy::Ask)];
        PermissionPolicy { default, kinds: kinds.into() }
    };
    match number % 4 {
        0 => Policy::Ask.into(),
        1 => edits(Policy::Allow, Policy::Reject),
        2 => edits(Policy::Reject, Policy::Allow),
        _ => Policy::Allow.into(),
    }
}

/// Some of what a profile and the settings may come to.
pub fn terms(number: u8, more: u8) -> Terms {
    let strategy = if number & 1 == 0 { Strategy::Command } else { Strategy::Rotate };
    let retries = [Retry::NoOutput, Retry::NoOutput, Retry::Undelivered, Retry::Never];
    Terms {
        patience: LIMITS,
        auto_compact: if number & 6 == 6 { 0.0 } else { 0.5 },
        retry: retries[usize::from(more % 4)],
        on_interrupt: *ON_INTERRUPT.get(usize::from(more / 4 % 4)).unwrap_or(&OnInterrupt::Auto),
        permissions: policy(more / 16),
        compaction: (number & 24 != 24).then(|| compaction(strategy, number / 64)),
        listens: number & 32 != 0,
    }
}

/// How a profile compacts.
pub fn compaction(strategy: Strategy, number: u8) -> CompactionOrder {
    CompactionOrder { strategy, text: format!("/a{number}") }
}

/// A request as it came.
pub fn request() -> Lines {
    let line = r#"{"jsonrpc":"2.0","id":1,"method":"session/request_permission"}"#;
    let kinds = Kinds::All("session/request_permission".into());
    Lines { count: 1, kinds, text: line.to_owned().into() }
}

/// The request of this number.
pub fn asked(what: Asked, request: i64) -> PermissionAsked {
    let kinds: &[&str] = match what.options % 6 {
        0 => &["allow_once", "reject_once"],
        1 => &["reject_always", "allow_always", "reject_once", "allow_once"],
        2 => &["allow_always"],
        3 => &["reject_always"],
        4 => &["something_else", "reject_once"],
        _ => &[],
    };
    let option = |kind: &&str| PermissionOption { id: format!("o-{kind}"), kind: (*kind).into() };
    let tool_kind = ["edit", "read"].get(usize::from(what.tool).wrapping_sub(1));
    PermissionAsked {
        request: number(request),
        tool_kind: tool_kind.map(|kind| (*kind).to_owned()),
        options: kinds.iter().map(option).collect(),
        shown: PermissionShown {
            tool_call: json("{}".into()),
            options: Json::write(&kinds).unwrap_or_else(|err| unreachable!("{err}")),
        },
    }
}

pub fn exit(reason: ExitReason) -> Exit {
    Exit {
        pid: None,
        code: Some(1),
        signal: None,
        reason,
        detail: "it ended".into(),
        stderr_tail: "last words".into(),
        stderr_dropped: 0,
    }
}

pub fn text(text: &str) -> Json {
    json(format!(r#"[{{"type":"text","text":"{text}"}}]"#))
}

pub fn number(number: i64) -> Json {
    json(number.to_string())
}

pub fn json(text: String) -> Json {
    Json::parse(text).unwrap_or_else(|err| unreachable!("the test writes JSON: {err}"))
}

/// What `_meta.hermes` says of hermes' session number so and so.
pub fn provenance(number: u8, previous: Option<String>, compacted: bool) -> Provenance {
    let current = format!("h{number}");
    let given = json(format!(r#"{{"currentHermesSessionId":"{current}"}}"#));
    Provenance { current, previous, compacted, given }
}

impl Seen {
    /// The signal. Only ACP gives names; the end of a stderr line names one of the two sessions.
    pub fn signal(self) -> Signal {
        let named = |number: u8| (number > 0).then(|| format!("h{number}"));
        let (before, after) = (named(self.lineage.0), named(self.lineage.1));
        let lineage = match self.source {
            Source::HermesStderr => Lineage { before, after: None, either: after },
            _ => Lineage { before, after, either: None },
        };
        let key = match self.source {
            Source::Acp => (self.key > 0).then(|| format!("k{}", self.key)),
            _ => None,
        };
        let details = Details::default();
        Signal { source: self.source, sign: self.sign, key, lineage, details }
    }
}

impl Spoken {
    /// The lines as an agent writes them, and what the rules need to know of them.
    pub fn lines(self) -> (Lines, Fold) {
        let mut fold = Fold::default();
        let parts = self.parts();
        let lines: Vec<_> = parts.iter().map(|(line, _)| line.as_str()).collect();
        let (count, text) = (lines.len() as u64, lines.join("\n").into());
        parts.into_iter().for_each(|(_, own)| fold.join(own));
        (Lines { count, kinds: Kinds::All("session/update".into()), text }, fold)
    }

    /// Line by line.
    pub fn parts(self) -> Vec<(String, Fold)> {
        match self {
            Self::Chunk(count) => vec![chunk("ab"); usize::from(count % 3) + 1],
            Self::Usage(used) => vec![usage(used, None)],
            Self::Cost(amount) => vec![usage(10, Some(amount))],
            Self::ToolBegins(id) => vec![tool(id, "pending")],
            Self::ToolEnds(id) => vec![tool_ended(id, ToolResult::Completed)],
            Self::ToolFails(id) => vec![tool_ended(id, ToolResult::Failed)],
            Self::Burst(id) => vec![
                tool(id + 1, "failed"),
                usage(id, Some(id)),
                tool(id, "pending"),
                usage(id / 2, Some(id / 2)),
                tool(id, "in_progress"),
                usage(id, Some(id.saturating_add(2))),
                chunk("ab"),
                tool_ended(id.wrapping_mul(7), ToolResult::Failed),
            ],
            Self::Mode => vec![(update(r#"{"sessionUpdate":"current_mode_update"}"#), NOTHING)],
            Self::Queued => vec![chunk(QUEUED)],
        }
    }
}

const NOTHING: Fold = Fold {
    output: false,
    text: String::new(),
    usage: None,
    tools: Vec::new(),
    costs: Vec::new(),
    answer: false,
};

fn update(fields: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"update":{fields}}}}}"#)
}

fn chunk(text: &str) -> (String, Fold) {
    let content = format!(r#"{{"type":"text","text":"{text}"}}"#);
    let line = update(&format!(r#"{{"sessionUpdate":"agent_message_chunk","content":{content}}}"#));
    (line, Fold { output: true, answer: true, text: text.into(), ..NOTHING })
}

/// A cost is so many dollars, or euros if it is odd.
fn usage(used: u8, amount: Option<u8>) -> (String, Fold) {
    let currency = |amount: u8| if amount.is_multiple_of(2) { "USD" } else { "EUR" };
    let cost = amount.map(|own| format!(r#"{{"amount":{own},"currency":"{}"}}"#, currency(own)));
    let told = cost.as_ref().map(|cost| format!(r#","cost":{cost}"#)).unwrap_or_default();
    let line =
        update(&format!(r#"{{"sessionUpdate":"usage_update","used":{used},"size":200{told}}}"#));
    let usage = Some(Usage { used: used.into(), size: 200, cost: cost.map(json) });
    let costs = amount.map(|own| Cost {
        currency: currency(own).into(),
        billionths: u64::from(own) * 1_000_000_000,
    });
    (line, Fold { usage, costs: costs.into_iter().collect(), ..NOTHING })
}

/// A call of one of a few tools.
fn tool(id: u8, status: &str) -> (String, Fold) {
    let ended = (status == "failed").then_some(ToolResult::Failed);
    let tool = ["t", "tt", "ttt"][usize::from(id % 3)];
    let line = update(&format!(
        r#"{{"sessionUpdate":"tool_call","toolCallId":"t{id}","title":"{tool}","status":"{status}"}}"#
    ));
    told(line, id, ToolStep::Called { tool: tool.into(), ended })
}

fn tool_ended(id: u8, result: ToolResult) -> (String, Fold) {
    let status = if result.is_failure() { "failed" } else { "completed" };
    let line = update(&format!(
        r#"{{"sessionUpdate":"tool_call_update","toolCallId":"t{id}","status":"{status}"}}"#
    ));
    told(line, id, ToolStep::Ended(result))
}

fn told(line: String, id: u8, step: ToolStep) -> (String, Fold) {
    let tools = vec![ToolNews { call: format!("t{id}"), step }];
    (line, Fold { output: true, answer: true, tools, ..NOTHING })
}

/// What an agent says that a prompt spent: some do not tell.
pub fn spent(number: u64) -> Option<Box<Spent>> {
    let total = Tokens { input: number % 7, output: number % 5, cached: number % 3 };
    let by_model = match number % 4 {
        0 => return None,
        1 => [("one".to_owned(), total)].into(),
        2 => [("one".to_owned(), total), ("two".to_owned(), total)].into(),
        _ => [].into(),
    };
    Some(Box::new(Spent { total, by_model, given: None }))
}
