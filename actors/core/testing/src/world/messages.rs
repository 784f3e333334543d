//! The settings, messages and signals of callers and agents, as the rules get them.

use greenroom_core::{
    CompactionOrder, CompactionSignal, Cost, Details, EffectiveSettings, Exit, ExitReason,
    FailedStart, Json, Kinds, Lineage, Lines, MessageKey, OnInterrupt, OutputSummary,
    PermissionAsked, PermissionOption, PermissionPolicy, PermissionShown, Policy,
    PromptCapabilities, Provenance, RetryPolicy, SessionId, Settings, Source, Strategy, Tokens,
    TokensSpent, ToolProgress, ToolResult, ToolUpdate, Usage,
};

use super::{
    LIMITS,
    actions::{AgentMessage, DetectorSignal, PermissionRequest},
};

/// Returns one of a few settings; they differ in agent and directory.
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

/// Returns one of a few effective settings.
pub fn effective_settings(number: u8, more: u8) -> EffectiveSettings {
    let strategy = if number & 1 == 0 { Strategy::Command } else { Strategy::Rotate };
    let retries = [
        RetryPolicy::NoOutput,
        RetryPolicy::NoOutput,
        RetryPolicy::Undelivered,
        RetryPolicy::Never,
    ];
    EffectiveSettings {
        limits: LIMITS,
        auto_compact: if number & 6 == 6 { 0.0 } else { 0.5 },
        retry: retries[usize::from(more % 4)],
        on_interrupt: *ON_INTERRUPT.get(usize::from(more / 4 % 4)).unwrap_or(&OnInterrupt::Auto),
        permissions: policy(more / 16),
        compaction: (number & 24 != 24).then(|| compaction(strategy, number / 64)),
        has_detectors: number & 32 != 0,
        is_draining: false,
        has_permission_room: true,
    }
}

/// Returns the way in which a profile compacts.
pub fn compaction(strategy: Strategy, number: u8) -> CompactionOrder {
    CompactionOrder { strategy, text: format!("/a{number}") }
}

/// Returns the line of a permission request.
pub fn permission_lines() -> Lines {
    let line = r#"{"jsonrpc":"2.0","id":1,"method":"session/request_permission"}"#;
    let kinds = Kinds::All("session/request_permission".into());
    Lines { count: 1, kinds, text: line.to_owned().into() }
}

/// Returns the permission request with this number.
pub fn permission_asked(wanted: PermissionRequest, request: i64) -> PermissionAsked {
    let kinds: &[&str] = match wanted.options % 6 {
        0 => &["allow_once", "reject_once"],
        1 => &["reject_always", "allow_always", "reject_once", "allow_once"],
        2 => &["allow_always"],
        3 => &["reject_always"],
        4 => &["something_else", "reject_once"],
        _ => &[],
    };
    let option = |kind: &&str| PermissionOption { id: format!("o-{kind}"), kind: (*kind).into() };
    let tool_kind = ["edit", "read"].get(usize::from(wanted.tool).wrapping_sub(1));
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
        failed_start: FailedStart::Passing,
    }
}

pub fn text(text: &str) -> Json {
    json(format!(r#"[{{"type":"text","text":"{text}"}}]"#))
}

/// Returns a prompt of text and these blocks: 1 image, 2 audio, 4 resource.
pub fn blocks(wanted: u8) -> Json {
    let kinds = ["image", "audio", "resource"].iter().enumerate();
    let wanted = kinds.filter(|(bit, _)| wanted >> bit & 1 == 1);
    let wanted = wanted.map(|(_, kind)| format!(r#",{{"type":"{kind}"}}"#));
    json(format!(r#"[{{"type":"text","text":"see"}}{}]"#, wanted.collect::<String>()))
}

/// Returns the capabilities of an agent that takes these blocks: 1 image, 2 audio, 4 resource.
pub fn taking(blocks: u8) -> PromptCapabilities {
    let takes = |bit: u8| blocks >> bit & 1 == 1;
    PromptCapabilities { image: takes(0), audio: takes(1), embedded_context: takes(2) }
}

pub fn number(number: i64) -> Json {
    json(number.to_string())
}

pub fn json(text: String) -> Json {
    Json::parse(text).unwrap_or_else(|err| unreachable!("the test writes JSON: {err}"))
}

/// Returns what an agent reports of its own session with this number: more than its name.
pub fn provenance(number: u8, previous: Option<String>, compacted: bool) -> Provenance {
    let current = format!("h{number}");
    let given = json(format!(r#"{{"own":"{current}","number":{number}}}"#));
    Provenance { current, previous, compacted, given }
}

impl DetectorSignal {
    /// Returns the signal. Only ACP gives keys; the end of a stderr line names one of the two
    /// sessions, in the agent's form.
    pub fn signal(self) -> CompactionSignal {
        let named = |number: u8| (number > 0).then(|| format!("h{number}"));
        let (before, after) = (named(self.lineage.0), named(self.lineage.1));
        let lineage = match self.source {
            Source::HermesStderr => {
                let given = after.as_ref().map(|name| json(format!(r#"{{"name":"{name}"}}"#)));
                Lineage { before, after: None, either: after, given }
            }
            _ => Lineage { before, after, ..Lineage::default() },
        };
        let key = match self.source {
            Source::Acp => (self.key > 0).then(|| format!("k{}", self.key)),
            _ => None,
        };
        let details = Details::default();
        CompactionSignal { source: self.source, kind: self.kind, key, lineage, details }
    }
}

impl AgentMessage {
    /// Returns the lines as an agent writes them, and their summary for the rules.
    pub fn lines(self) -> (Lines, OutputSummary) {
        let mut summary = OutputSummary::default();
        let parts = self.parts();
        let lines: Vec<_> = parts.iter().map(|(line, _)| line.as_str()).collect();
        let (count, text) = (lines.len() as u64, lines.join("\n").into());
        parts.into_iter().for_each(|(_, part)| summary.join(part));
        (Lines { count, kinds: Kinds::All("session/update".into()), text }, summary)
    }

    /// Returns the lines of a message that names its session.
    pub fn lines_of(self, session: &SessionId) -> (Lines, OutputSummary) {
        let (Lines { count, kinds, text }, summary) = self.lines();
        let named = format!(r#""params":{{"sessionId":"{session}","#);
        let text = text.replace(r#""params":{"#, &named).into();
        (Lines { count, kinds, text }, summary)
    }

    /// Returns each line with its summary.
    pub fn parts(self) -> Vec<(String, OutputSummary)> {
        match self {
            Self::Chunk(count) => vec![chunk("ab"); usize::from(count % 3) + 1],
            Self::ChunkOf(message) => vec![chunk_of(&format!("m{message}"))],
            Self::UserWords => vec![user_words()],
            Self::Usage(used) => vec![usage(used, None)],
            Self::Cost(amount) => vec![usage(10, Some(amount))],
            Self::ToolStarted(id) => vec![tool(id, "pending")],
            Self::ToolCompleted(id) => vec![tool_ended(id, ToolResult::Completed)],
            Self::ToolFailed(id) => vec![tool_ended(id, ToolResult::Failed)],
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
        }
    }
}

const NOTHING: OutputSummary = OutputSummary {
    has_output: false,
    text: String::new(),
    usage: None,
    tools: Vec::new(),
    costs: Vec::new(),
    has_answer: false,
    is_named: false,
    message: None,
    is_users: false,
    is_early: false,
    other_sessions: None,
};

fn update(fields: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"update":{fields}}}}}"#)
}

fn chunk(text: &str) -> (String, OutputSummary) {
    let content = format!(r#"{{"type":"text","text":"{text}"}}"#);
    let line = update(&format!(r#"{{"sessionUpdate":"agent_message_chunk","content":{content}}}"#));
    (line, OutputSummary { has_output: true, has_answer: true, text: text.into(), ..NOTHING })
}

/// Returns the line of a chunk with this text, and its summary for the rules.
pub fn chunk_line(text: &str) -> (Lines, OutputSummary) {
    let (line, summary) = chunk(text);
    (Lines { count: 1, kinds: Kinds::All("session/update".into()), text: line.into() }, summary)
}

/// Returns a chunk of the message with this id.
fn chunk_of(message: &str) -> (String, OutputSummary) {
    let (line, summary) = chunk("cd");
    let content = r#""content":"#;
    let line = line.replace(content, &format!(r#""messageId":"{message}",{content}"#));
    (line, OutputSummary { message: Some(MessageKey::new(message)), ..summary })
}

fn user_words() -> (String, OutputSummary) {
    let line = chunk("do it").0.replace("agent_message_chunk", "user_message_chunk");
    (line, OutputSummary { has_output: true, is_users: true, ..NOTHING })
}

/// Returns a usage line; an even `amount` is in dollars, an odd one in euros.
fn usage(used: u8, amount: Option<u8>) -> (String, OutputSummary) {
    let currency = |amount: u8| if amount.is_multiple_of(2) { "USD" } else { "EUR" };
    let cost =
        amount.map(|amount| format!(r#"{{"amount":{amount},"currency":"{}"}}"#, currency(amount)));
    let field = cost.as_ref().map(|cost| format!(r#","cost":{cost}"#)).unwrap_or_default();
    let line =
        update(&format!(r#"{{"sessionUpdate":"usage_update","used":{used},"size":200{field}}}"#));
    let usage = Some(Usage { used: used.into(), size: 200, cost: cost.map(json) });
    let costs = amount.map(|amount| Cost {
        currency: currency(amount).into(),
        billionths: u64::from(amount) * 1_000_000_000,
    });
    (line, OutputSummary { usage, costs: costs.into_iter().collect(), ..NOTHING })
}

/// Returns the call of one of a few tools.
fn tool(id: u8, status: &str) -> (String, OutputSummary) {
    let ended = (status == "failed").then_some(ToolResult::Failed);
    let tool = ["t", "tt", "ttt"][usize::from(id % 3)];
    let line = update(&format!(
        r#"{{"sessionUpdate":"tool_call","toolCallId":"t{id}","title":"{tool}","status":"{status}"}}"#
    ));
    tool_line(line, id, ToolProgress::Called { tool: tool.into(), ended })
}

fn tool_ended(id: u8, result: ToolResult) -> (String, OutputSummary) {
    let status = if result.is_failure() { "failed" } else { "completed" };
    let line = update(&format!(
        r#"{{"sessionUpdate":"tool_call_update","toolCallId":"t{id}","status":"{status}"}}"#
    ));
    tool_line(line, id, ToolProgress::Ended(result))
}

fn tool_line(line: String, id: u8, step: ToolProgress) -> (String, OutputSummary) {
    let tools = vec![ToolUpdate { call: format!("t{id}"), step }];
    (line, OutputSummary { has_output: true, has_answer: true, tools, ..NOTHING })
}

/// Returns the tokens that an agent reports for a prompt; some agents report none.
pub fn spent(number: u64) -> Option<Box<TokensSpent>> {
    let total = Tokens { input: number % 7, output: number % 5, cached: number % 3 };
    let by_model = match number % 4 {
        0 => return None,
        1 => [("one".to_owned(), total)].into(),
        2 => [("one".to_owned(), total), ("two".to_owned(), total)].into(),
        _ => [].into(),
    };
    Some(Box::new(TokensSpent { total, by_model, ..TokensSpent::default() }))
}
