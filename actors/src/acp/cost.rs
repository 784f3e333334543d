//! What an agent spent: money from a `usage_update`, tokens from the response to a prompt.

use std::collections::BTreeMap;

use greenroom_core::{Cost, Tokens, TokensSpent};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json;

/// The number of models distinguished in one prompt.
const MODELS_MAX: usize = 32;
/// The longest currency name.
const CURRENCY_BYTES_MAX: usize = 8;

/// Parses ACP's `cost`, the session's total so far. A negative or non-numeric amount is ignored.
pub fn cost(raw: &RawValue) -> Option<Cost> {
    #[derive(Deserialize)]
    struct Given {
        amount: f64,
        currency: String,
    }
    let Given { amount, currency } = serde_json::from_str(raw.get()).ok()?;
    let billionths = (amount * 1e9).round();
    let is_amount = (0.0..9e18).contains(&billionths);
    let is_currency = (1..=CURRENCY_BYTES_MAX).contains(&currency.len());
    (is_amount && is_currency).then_some(Cost { currency, billionths: billionths as u64 })
}

/// Parses ACP's `usage` of the response to a prompt, and what codex, Claude Code and gemini add in
/// `_meta`; gemini reports its tokens only there.
pub fn spent(usage: Option<&RawValue>, meta: Option<&RawValue>) -> Option<TokensSpent> {
    #[derive(Deserialize)]
    struct Meta {
        quota: Option<Quota>,
    }
    #[derive(Deserialize)]
    struct Quota {
        token_count: Option<Counts>,
        #[serde(default)]
        model_usage: Vec<OfModel>,
    }
    #[derive(Deserialize)]
    struct OfModel {
        model: String,
        token_count: Counts,
    }
    let quota = meta.and_then(|raw| serde_json::from_str::<Meta>(raw.get()).ok()?.quota);
    let (counted, models) = match quota {
        Some(Quota { token_count, model_usage }) => (token_count, model_usage),
        None => (None, Vec::new()),
    };
    let from_usage = usage.and_then(|raw| serde_json::from_str::<Counts>(raw.get()).ok());
    let total = from_usage.or(counted);
    let mut by_model = BTreeMap::<String, Tokens>::new();
    for OfModel { model, token_count } in models.into_iter().take(MODELS_MAX) {
        by_model.entry(model).or_default().add(&token_count.into());
    }
    let is_reported = total.is_some() || !by_model.is_empty() || usage.is_some();
    is_reported.then(|| TokensSpent {
        total: total.map(Tokens::from).unwrap_or_default(),
        by_model,
        given: usage.map(json),
    })
}

/// Token counts, under any of their names.
#[derive(Deserialize)]
struct Counts {
    #[serde(default, alias = "input_tokens", rename = "inputTokens")]
    input: Option<u64>,
    #[serde(default, alias = "output_tokens", rename = "outputTokens")]
    output: Option<u64>,
    #[serde(default, alias = "cachedInputTokens", rename = "cachedReadTokens")]
    cached: Option<u64>,
}

impl From<Counts> for Tokens {
    fn from(Counts { input, output, cached }: Counts) -> Self {
        Self {
            input: input.unwrap_or_default(),
            output: output.unwrap_or_default(),
            cached: cached.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn money_is_counted_in_billionths() {
        let parsed = |text: &str| cost(&raw(text)).map(|cost| (cost.currency, cost.billionths));
        let usd = |billionths| Some(("USD".to_owned(), billionths));
        let claude = r#"{"amount":0.06912900000000001,"currency":"USD"}"#;
        assert_eq!(parsed(claude), usd(69_129_000));
        assert_eq!(parsed(r#"{"amount":0,"currency":"USD"}"#), usd(0));
        for bad in [
            "null",
            r#"{"amount":-1,"currency":"USD"}"#,
            r#"{"amount":1e300,"currency":"USD"}"#,
            r#"{"amount":"1","currency":"USD"}"#,
            r#"{"amount":1}"#,
            r#"{"amount":1,"currency":"far too long for one"}"#,
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    /// The forms in the recordings: hermes, codex, Claude Code, gemini.
    #[test]
    fn tokens_are_read_in_the_form_of_each_agent() {
        let parsed = |usage: &str, meta: &str| {
            let (usage, meta) = (raw(usage), raw(meta));
            let given = |raw: &RawValue| raw.get() != "null";
            let (usage, meta) = (Some(&*usage).filter(|raw| given(raw)), Some(&*meta));
            spent(usage, meta).map(|spent| {
                let Tokens { input, output, cached } = spent.total;
                let models = spent.by_model.iter();
                let models = models.map(|(model, tokens)| (model.clone(), tokens.input)).collect();
                ((input, output, cached), models)
            })
        };
        let nothing = Vec::<(String, u64)>::new();
        let hermes = r#"{"cachedReadTokens":7,"inputTokens":142946,"outputTokens":56}"#;
        assert_eq!(parsed(hermes, "null"), Some(((142_946, 56, 7), nothing.clone())));
        let claude = r#"{"quota":{"token_count":{"inputTokens":1,"outputTokens":2},"model_usage":[
            {"model":"haiku","token_count":{"inputTokens":1934,"cachedInputTokens":3}},
            {"model":"haiku","token_count":{"inputTokens":1}},
            {"model":"sonnet","token_count":{"inputTokens":22305}}]}}"#;
        let models = vec![("haiku".to_owned(), 1935), ("sonnet".to_owned(), 22_305)];
        assert_eq!(parsed(r#"{"inputTokens":5}"#, claude), Some(((5, 0, 0), models)));
        let gemini = r#"{"quota":{"token_count":{"input_tokens":900000,"output_tokens":14},
            "model_usage":[{"model":"flash","token_count":{"input_tokens":900000}}]}}"#;
        let models = vec![("flash".to_owned(), 900_000)];
        assert_eq!(parsed("null", gemini), Some(((900_000, 14, 0), models)));
        assert_eq!(parsed("null", "null"), None);
        assert_eq!(parsed("null", r#"{"quota":7}"#), None);
    }
}
