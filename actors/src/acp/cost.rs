//! What an agent spent: money from a `usage_update`, tokens from the response to a prompt.

use std::collections::BTreeMap;

use greenroom_core::{Cost, Tokens, TokensSpent};
use serde_json::value::RawValue;

use super::{
    fields::{elements, fields, object, text, value, whole},
    json,
};
use crate::secrets;

/// The number of models distinguished in one prompt.
const MODELS_MAX: usize = 32;
/// The longest currency name.
const CURRENCY_BYTES_MAX: usize = 8;

/// Parses ACP's `cost`, the session's total so far. A negative or non-numeric amount is ignored.
pub fn cost(raw: &RawValue) -> Option<Cost> {
    fields! {
        struct Given { amount: "amount", currency: "currency" }
    }
    let Given { amount, currency } = object(raw)?;
    let (amount, currency) = (value::<f64>(amount?)?, text(currency?)?.into_owned());
    let billionths = (amount * 1e9).round();
    let is_amount = (0.0..9e18).contains(&billionths);
    let is_currency = (1..=CURRENCY_BYTES_MAX).contains(&currency.len());
    (is_amount && is_currency).then_some(Cost { currency, billionths: billionths as u64 })
}

/// Parses ACP's `usage` of the response to a prompt, and what codex, Claude Code and gemini add in
/// `_meta`; gemini reports its tokens only there.
pub fn spent(usage: Option<&RawValue>, meta: Option<&RawValue>) -> Option<TokensSpent> {
    fields! {
        struct Meta { quota: "quota" }
        struct Quota { token_count: "token_count", model_usage: "model_usage" }
        struct OfModel { model: "model", token_count: "token_count" }
    }
    let quota = meta.and_then(object::<Meta<'_>>).and_then(|meta| object(meta.quota?));
    let Quota { token_count, model_usage } = quota.unwrap_or_default();
    let total = usage.and_then(tokens).or_else(|| token_count.and_then(tokens));
    let mut by_model = BTreeMap::<String, Tokens>::new();
    for of_model in model_usage.map(elements).unwrap_or_default().into_iter().take(MODELS_MAX) {
        let OfModel { model, token_count } = object(of_model).unwrap_or_default();
        if let (Some(model), Some(count)) = (model.and_then(text), token_count.and_then(tokens)) {
            let model = secrets::redacted(&model).into_owned();
            by_model.entry(model).or_default().add(&count);
        }
    }
    let is_reported = total.is_some() || !by_model.is_empty() || usage.is_some();
    is_reported.then(|| TokensSpent {
        total: total.unwrap_or_default(),
        by_model,
        given: usage.map(json),
        given_sum: usage.and_then(sum),
        // The name says so: what this prompt took of the user's quota.
        is_of_prompt: token_count.is_some() || model_usage.is_some(),
    })
}

/// Parses the sum of all kinds of tokens.
fn sum(raw: &RawValue) -> Option<u64> {
    fields! {
        struct Sum { total: "totalTokens" | "total_tokens" }
    }
    object::<Sum<'_>>(raw)?.total.and_then(whole)
}

/// Parses token counts, under any of their names.
fn tokens(raw: &RawValue) -> Option<Tokens> {
    fields! {
        struct Counts {
            input: "inputTokens" | "input_tokens",
            output: "outputTokens" | "output_tokens",
            cached: "cachedReadTokens" | "cachedInputTokens",
        }
    }
    let Counts { input, output, cached } = object(raw)?;
    let count = |raw: Option<&RawValue>| raw.and_then(whole).unwrap_or_default();
    Some(Tokens { input: count(input), output: count(output), cached: count(cached) })
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
