//! The handshake with agents that restore a session, do not, or refuse.

#![allow(clippy::unwrap_used)]

use super::{
    quiet::{QUIET, REPLAY_BEGINS},
    *,
};

const RESUMES: &str = r#"{"protocolVersion":1,"agentCapabilities":{"loadSession":true,"sessionCapabilities":{"resume":{}}}}"#;
const LOADS: &str = r#"{"protocolVersion":1,"agentCapabilities":{"loadSession":true}}"#;
const RESUME_ONLY: &str =
    r#"{"protocolVersion":1,"agentCapabilities":{"sessionCapabilities":{"resume":{}}}}"#;
const NEITHER: &str = r#"{"protocolVersion":1}"#;
const NEW: &str = r#"{"sessionId":"fresh"}"#;
/// The answer of hermes to the resume of a session that it does not know.
const ANOTHER: &str = r#"{"_meta":{"hermes":{"sessionProvenance":{"acpSessionId":"another"}}}}"#;

fn error(code: i64, message: &str) -> acp::RpcError {
    let kind = match code {
        -32000 => ErrorKind::Auth,
        -32602 => ErrorKind::Lasting,
        _ => ErrorKind::Passing,
    };
    acp::RpcError { code: Some(code), kind, message: message.into() }
}

/// Plays the agent: `answers` in order, `Err` for a JSON-RPC error. It is quiet between them.
fn play(session: Option<&str>, answers: &[Result<&str, i64>]) -> (Vec<String>, Next) {
    play_restore(session, false, answers)
}

fn play_restore(
    session: Option<&str>,
    may_replace: bool,
    answers: &[Result<&str, i64>],
) -> (Vec<String>, Next) {
    let to_restore = session.map(|id| SessionId(id.into()));
    let (mut handshake, first) = Handshake::new("/tmp".into(), None, to_restore, may_replace);
    let method = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["method"].as_str().unwrap().to_owned()
    };
    let mut asked = vec![method(&first)];
    for (id, answer) in (1..).zip(answers) {
        assert_eq!(handshake.on_response(99, Ok("{}")), None, "a response to another request");
        let answer = answer.map_err(|code| error(code, "no"));
        let mut next = handshake.on_response(id, answer).unwrap();
        if next == Next::AwaitQuiet {
            assert_eq!(handshake.on_response(id, Ok("{}")), None, "the same response twice");
            next = handshake.on_quiet();
        }
        match next {
            Next::Send(line) => asked.push(method(&line)),
            end => return (asked, end),
        }
    }
    panic!("no end after {asked:?}");
}

fn ready(id: &str, continuity: Continuity) -> Next {
    Next::Ready(SessionId(id.into()), continuity)
}

type Case<'a> = (&'a str, Option<&'a str>, &'a [Result<&'a str, i64>], &'a [&'a str], Next);

#[test]
fn a_session_is_restored_by_the_best_method_of_the_agent() {
    #[rustfmt::skip]
    let cases: [Case; 9] = [
        ("first",           None,      &[Ok(RESUMES), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::New)),
        ("resume",          Some("s"), &[Ok(RESUMES), Ok("{}")],                       &["initialize", "session/resume"],                               ready("s", Continuity::Resumed)),
        ("load",            Some("s"), &[Ok(LOADS), Ok(r#"{"modes":null,"x":1}"#)],    &["initialize", "session/load"],                                 ready("s", Continuity::Loaded)),
        ("resume fails",    Some("s"), &[Ok(RESUMES), Err(-32603), Ok(r#"{"x":1}"#)],  &["initialize", "session/resume", "session/load"],               ready("s", Continuity::Loaded)),
        ("both fail",       Some("s"), &[Ok(RESUMES), Err(1), Err(-32002), Ok(NEW)],   &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
        ("resume gone",     Some("s"), &[Ok(RESUME_ONLY), Err(-32002), Ok(NEW)],       &["initialize", "session/resume", "session/new"],                ready("fresh", Continuity::Lost)),
        ("gone, and empty", Some("s"), &[Ok(RESUMES), Err(-32002), Ok("{}"), Ok(NEW)], &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
        ("hermes' way",     Some("s"), &[Ok(RESUMES), Ok(ANOTHER), Ok("{}"), Ok(NEW)], &["initialize", "session/resume", "session/load", "session/new"], ready("fresh", Continuity::Lost)),
        ("no method",       Some("s"), &[Ok(NEITHER), Ok(NEW)],                        &["initialize", "session/new"],                                  ready("fresh", Continuity::Lost)),
    ];
    for (name, session, answers, methods, end) in cases {
        let (asked, ended) = play(session, answers);
        assert_eq!(
            (asked, ended),
            (methods.iter().map(|m| (*m).to_owned()).collect(), end),
            "{name}"
        );
    }
}

type Fails<'a> = (&'a str, &'a [Result<&'a str, i64>], &'a str);

/// I16: an error that may pass does not throw the session away, until it is the last attempt.
#[test]
fn an_error_that_may_pass_keeps_the_session() {
    #[rustfmt::skip]
    let cases: [Fails; 3] = [
        ("load",            &[Ok(LOADS), Err(-32603)],                "session/load"),
        ("resume",          &[Ok(RESUME_ONLY), Err(-32603)],          "session/resume"),
        ("load at last",    &[Ok(RESUMES), Err(-32002), Err(-32603)], "session/load"),
    ];
    for (name, answers, method) in cases {
        let (_, end) = play(Some("s"), answers);
        let why = format!("it did not restore its session: {method}: no (error -32603)");
        assert_eq!(end, Next::Fail(why), "{name}");
        let (_, end) = play_restore(Some("s"), true, &[answers, &[Ok(NEW)]].concat());
        assert_eq!(end, ready("fresh", Continuity::Lost), "{name}");
    }
}

/// I16: an empty answer to a load, with no replay after it, is as doubtful as such an error.
#[test]
fn an_empty_answer_to_a_load_keeps_the_session() {
    for empty in ["null", "{}"] {
        for answers in [&[Ok(LOADS), Ok(empty)][..], &[Ok(RESUMES), Err(-32603), Ok(empty)]] {
            let (_, end) = play(Some("s"), answers);
            let expected = "it did not restore its session: session/load: its answer is empty";
            let Next::Fail(why) = &end else { panic!("{empty}: {end:?}") };
            assert!(why.starts_with(expected), "{why}");
            let (_, end) = play_restore(Some("s"), true, &[answers, &[Ok(NEW)]].concat());
            assert_eq!(end, ready("fresh", Continuity::Lost), "{empty}, at the last attempt");
        }
    }
}

/// A-4: what the agent writes between the request and the quiet after its answer is a replay,
/// but for what agents send unasked; an empty answer with a replay after it is a success.
#[test]
fn updates_of_a_restore_are_a_replay() {
    let begin = || Handshake::new("/tmp".into(), None, Some(SessionId("s".into())), false).0;
    let mut handshake = begin();
    assert!(!handshake.is_replay(true), "no restore yet");
    handshake.on_response(1, Ok(RESUMES)).unwrap();
    assert!(handshake.is_replay(false), "resume");
    handshake.on_response(2, Err(error(-32603, "no"))).unwrap();
    assert!(handshake.is_replay(true), "load");
    assert_eq!(handshake.on_response(3, Ok("{}")), Some(Next::AwaitQuiet));
    assert_eq!(handshake.quiet_time(), Some(QUIET), "it was replayed");
    assert!(handshake.is_replay(true) && !handshake.is_replay(false), "after the answer");
    assert_eq!(handshake.on_quiet(), ready("s", Continuity::Loaded));

    let mut handshake = begin();
    handshake.on_response(1, Ok(LOADS)).unwrap();
    assert_eq!(handshake.on_response(2, Ok("null")), Some(Next::AwaitQuiet));
    assert_eq!(handshake.quiet_time(), Some(REPLAY_BEGINS));
    assert!(!handshake.is_replay(false));
    assert_eq!(handshake.quiet_time(), Some(REPLAY_BEGINS), "sent unasked, it shows nothing");
    assert!(handshake.is_replay(true));
    assert_eq!(handshake.quiet_time(), Some(QUIET), "the session is known");
    assert_eq!(handshake.on_quiet(), ready("s", Continuity::Loaded));
}

#[test]
fn an_unusable_agent_fails_with_the_reason() {
    for (answers, why) in [
        (&[Ok(r#"{"protocolVersion":7}"#)][..], "ACP version 7"),
        (&[Ok("[]")], "no ACP agent"),
        (&[Err(-32603)], "refused initialize"),
        (&[Ok(NEITHER), Err(-32603)], "refused session/new"),
    ] {
        let (_, end) = play(None, answers);
        assert!(matches!(&end, Next::Fail(text) if text.contains(why)), "{end:?}");
    }
}

/// DQ-8: a request without which there is no session, and whose error lasts, is not repeated;
/// an error on a load may pass for the next session.
#[test]
fn an_error_that_lasts_ends_each_start() {
    #[rustfmt::skip]
    let cases: [(&[Result<&str, i64>], &str); 2] = [
        (&[Err(-32602)],              "it refused initialize"),
        (&[Ok(NEITHER), Err(-32602)], "it refused session/new"),
    ];
    for (answers, why) in cases {
        let (_, end) = play(None, answers);
        assert!(matches!(&end, Next::FailAlways(text) if text.starts_with(why)), "{end:?}");
    }
    let (_, end) = play(Some("s"), &[Ok(LOADS), Err(-32602)]);
    assert!(matches!(&end, Next::Fail(_)), "{end:?}");
}

/// I16: which answers show how a session was lost.
#[test]
fn the_loss_of_a_session_has_its_cause() {
    type Case<'a> = (&'a [Result<&'a str, i64>], &'a str, bool);
    #[rustfmt::skip]
    let cases: [Case<'_>; 5] = [
        (&[Ok(NEITHER)],                       "the agent can neither load nor resume a session", false),
        (&[Ok(LOADS), Err(-32002)],            "session/load: no (error -32002)", true),
        (&[Ok(LOADS), Err(-32603)],            "session/load: no (error -32603)", false),
        (&[Ok(RESUME_ONLY), Ok(ANOTHER)],      "session/resume: its answer names another session", true),
        (&[Ok(LOADS), Ok("{}")],               "session/load: its answer is empty, and it replayed nothing", false),
    ];
    for (answers, cause, is_unknown) in cases {
        let (mut handshake, _) =
            Handshake::new("/tmp".into(), None, Some(SessionId("s".into())), true);
        for (id, answer) in (1..).zip(answers) {
            let next = handshake.on_response(id, answer.map_err(|code| error(code, "no")));
            if next == Some(Next::AwaitQuiet) {
                handshake.on_quiet();
            }
        }
        let expected = Loss { cause: cause.into(), is_unknown };
        assert_eq!(handshake.take_loss(), Some(expected), "{answers:?}");
    }
}

/// The session to restore, the answers, and the reason.
type Refusal<'a> = (Option<&'a str>, &'a [Result<&'a str, i64>], &'a str);

/// DQ-13: whichever request the agent refuses, a session to restore is not given up.
#[test]
fn an_agent_that_wants_a_login_gets_no_further_request() {
    #[rustfmt::skip]
    let cases: [Refusal<'_>; 5] = [
        (None,      &[Err(-32000)],                                "refused initialize"),
        (None,      &[Ok(NEITHER), Err(-32000)],                   "refused session/new"),
        (Some("s"), &[Ok(LOADS), Err(-32000)],                     "refused session/load"),
        (Some("s"), &[Ok(RESUMES), Err(-32000)],                   "refused session/resume"),
        (Some("s"), &[Ok(RESUMES), Err(-32603), Err(-32000)],      "refused session/load"),
    ];
    for (session, answers, why) in cases {
        let (_, end) = play(session, answers);
        assert!(matches!(&end, Next::WantLogin(text) if text.contains(why)), "{end:?}");
    }
}
