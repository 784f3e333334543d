//! What an agent says about itself in the handshake, for a person. No decision depends on it.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    bounds::truncate,
    fields::{Fields, elements, fields, lossy_text, object, read},
};

/// The longest text that is kept.
const TEXT_BYTES_MAX: usize = 200;
/// How many members of a list are kept.
const LIST_MAX: usize = 32;
/// What a prompt may contain beside text and links, if the agent advertises it.
const PROMPT_PARTS: [&str; 3] = ["image", "audio", "embeddedContext"];

/// What the response to `initialize` says about the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AgentCard {
    /// The agent's own name.
    pub name: Option<String>,
    /// The agent's own version.
    pub version: Option<String>,
    /// Whether it has `session/load`.
    pub load: bool,
    /// Whether it has `session/resume`.
    pub resume: bool,
    /// What a prompt may contain beside text and links, in ACP's words.
    pub prompts: Vec<&'static str>,
    /// How one can log in.
    pub auth_methods: Vec<AuthMethod>,
}

/// A way to log in, which `auth_method` of a profile can name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuthMethod {
    /// Its id.
    pub id: String,
    /// What the agent says about it.
    pub description: Option<String>,
}

/// The modes of a session, which in most agents decide what the agent asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Modes {
    /// The id of the current one.
    pub current: Option<String>,
    /// The ids of all.
    pub available: Vec<String>,
}

/// Reads the response to `initialize`; what cannot be read is absent.
pub fn agent_card(result: &str) -> AgentCard {
    fields! {
        struct Answer {
            info: "agentInfo",
            capabilities: "agentCapabilities",
            methods: "authMethods",
        }
        struct Info { name: "name", version: "version" }
        struct Given { prompts: "promptCapabilities" }
        struct Prompts { image: "image", audio: "audio", embedded: "embeddedContext" }
        struct Method { id: "id", name: "name", description: "description" }
    }
    let Answer { info, capabilities, methods } = read(result).unwrap_or_default();
    let Info { name, version } = info.and_then(object).unwrap_or_default();
    let Given { prompts } = capabilities.and_then(object).unwrap_or_default();
    let Prompts { image, audio, embedded } = prompts.and_then(object).unwrap_or_default();
    let used = super::capabilities(result).ok();
    let advertised = |raw: Option<&RawValue>| raw.is_some_and(|raw| raw.get() == "true");
    let prompts = PROMPT_PARTS.into_iter().zip([image, audio, embedded]);
    let method = |Method { id, name, description }: Method<'_>| {
        let description = description.and_then(shown).or_else(|| name.and_then(shown));
        Some(AuthMethod { id: id.and_then(shown)?, description })
    };
    AgentCard {
        name: name.and_then(shown),
        version: version.and_then(shown),
        load: used.is_some_and(|used| used.load),
        resume: used.is_some_and(|used| used.resume),
        prompts: prompts.filter(|(_, raw)| advertised(*raw)).map(|(part, _)| part).collect(),
        auth_methods: objects(methods).filter_map(method).collect(),
    }
}

/// Reads the modes in the response to `session/new`: ACP's `modes`, else the configuration option
/// for the mode.
pub fn modes(result: &str) -> Modes {
    fields! {
        struct Answer { modes: "modes", options: "configOptions" }
        struct Given { current: "currentModeId", available: "availableModes" }
        struct Mode { id: "id" | "value" }
        struct Choice { category: "category", current: "currentValue", options: "options" }
    }
    let Answer { modes, options } = read(result).unwrap_or_default();
    let given = |current: Option<&RawValue>, available: Option<&RawValue>| {
        let ids = objects(available).filter_map(|Mode { id }| id.and_then(shown));
        Modes { current: current.and_then(shown), available: ids.collect() }
    };
    if let Some(Given { current, available }) = modes.and_then(object) {
        return given(current, available);
    }
    let is_mode = |choice: &Choice<'_>| choice.category.and_then(shown).as_deref() == Some("mode");
    let choice = objects(options).find(is_mode).unwrap_or_default();
    given(choice.current, choice.options)
}

/// Reads the objects of a list.
fn objects<'a, T: Fields<'a>>(list: Option<&'a RawValue>) -> impl Iterator<Item = T> {
    list.map(elements).unwrap_or_default().into_iter().take(LIST_MAX).filter_map(object)
}

/// Returns a text in bounded length.
fn shown(raw: &RawValue) -> Option<String> {
    lossy_text(raw).map(|text| truncate(text.into_owned(), TEXT_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RA: gemini's response, shortened.
    #[test]
    fn the_card_has_what_the_agent_says() {
        let card = agent_card(
            r#"{"protocolVersion":1,"agentInfo":{"name":"gemini-cli","title":"Gemini CLI","version":"0.61.0"},
            "authMethods":[{"id":"gemini-api-key","name":"Key","description":"Use an API key"},
            {"id":"vertex-ai","name":"Vertex AI"},{"name":"no id"},7],
            "agentCapabilities":{"loadSession":true,
            "promptCapabilities":{"image":true,"audio":false,"embeddedContext":true}}}"#,
        );
        let method = |id: &str, description: &str| AuthMethod {
            id: id.into(),
            description: Some(description.into()),
        };
        assert_eq!(
            card,
            AgentCard {
                name: Some("gemini-cli".into()),
                version: Some("0.61.0".into()),
                load: true,
                resume: false,
                prompts: vec!["image", "embeddedContext"],
                auth_methods: vec![
                    method("gemini-api-key", "Use an API key"),
                    method("vertex-ai", "Vertex AI"),
                ],
            }
        );
        let odd =
            r#"{"agentInfo":7,"authMethods":{},"agentCapabilities":{"promptCapabilities":[]}}"#;
        for result in [odd, "null", "[]", "no JSON"] {
            assert_eq!(agent_card(result), AgentCard::default(), "{result}");
        }
    }

    #[test]
    fn modes_are_read_from_either_place() {
        let of = |current: &str, available: [&str; 2]| Modes {
            current: Some(current.into()),
            available: available.map(str::to_owned).to_vec(),
        };
        let option = r#"{"id":"mode","category":"mode","currentValue":"build",
            "options":[{"value":"build"},{"value":"plan"}]}"#;
        let model =
            r#"{"id":"model","category":"model","currentValue":"m","options":[{"value":"m"}]}"#;
        let given =
            r#""modes":{"currentModeId":"ask","availableModes":[{"id":"ask"},{"id":"auto"}]}"#;
        #[rustfmt::skip]
        let cases = [
            ("modes",             format!("{{{given}}}"),                               of("ask", ["ask", "auto"])),
            ("both",              format!(r#"{{{given},"configOptions":[{option}]}}"#), of("ask", ["ask", "auto"])),
            ("an option",         format!(r#"{{"configOptions":[{model},{option}]}}"#), of("build", ["build", "plan"])),
            ("no option of it",   format!(r#"{{"configOptions":[{model}]}}"#),          Modes::default()),
            ("neither",           "{}".into(),                                          Modes::default()),
            ("odd",               r#"{"modes":7,"configOptions":"x"}"#.into(),          Modes::default()),
        ];
        for (name, result, expected) in cases {
            assert_eq!(modes(&result), expected, "{name}");
        }
    }

    /// I11: an agent that says much is shown in bounded length.
    #[test]
    fn the_card_is_bounded() {
        let long = "x".repeat(10_000);
        let method = format!(r#"{{"id":"{long}","name":"{long}"}}"#);
        let methods = vec![method.as_str(); 1_000].join(",");
        let card = agent_card(&format!(
            r#"{{"agentInfo":{{"name":"{long}"}},"authMethods":[{methods}]}}"#
        ));
        assert_eq!(card.auth_methods.len(), LIST_MAX);
        assert_eq!(card.auth_methods[0].id.len(), TEXT_BYTES_MAX);
        assert_eq!(card.name.map(|name| name.len()), Some(TEXT_BYTES_MAX));
    }
}
