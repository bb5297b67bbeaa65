//! What a request will cost in tokens, guessed before it is sent.
//!
//! Providers count a request against tokens/min when it arrives, as prompt estimate + output bound × n. The prompt is
//! guessed from its bytes and corrected by the answer's `usage`. A token of English is about four bytes, one of Chinese
//! or of program text quite another number, and a template adds what is no text at all: the answers teach it.

use serde::Deserialize;

use crate::domain::{Endpoint, Request};
use crate::provider::Usage;

/// Tokens that a byte of a JSON body makes, on the average of English prose.
const TOKENS_PER_BYTE: f64 = 0.25;

/// What can be learnt: an image is many bytes and few tokens; beyond it the server counts something else.
const TOKENS_PER_BYTE_MIN: f64 = 1e-4;
const TOKENS_PER_BYTE_MAX: f64 = 2.0;

/// How fast it follows: the last few dozen answers.
const WEIGHT: f64 = 1.0 / 32.0;

/// `max_tokens` of the completions endpoint where the request names none; the other endpoints have no bound.
const COMPLETIONS_DEFAULT: u64 = 16;

#[derive(Default, Deserialize)]
struct Bounds {
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    n: Option<u64>,
    best_of: Option<u64>,
}

/// What a request is counted as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    /// Of the body; 0 where nothing was counted.
    bytes: u64,
    prompt: u64,
    /// The output bound for all choices. Providers count it whole, however little is said in the end.
    output: u64,
}

impl Estimate {
    /// Tokens in all; at least 1.
    pub(super) fn total(self) -> u64 {
        self.prompt.saturating_add(self.output).max(1)
    }

    /// Tokens in all, now that the answer has told the prompt's own.
    pub(super) fn corrected(self, usage: Usage) -> u64 {
        usage.input_tokens.saturating_add(self.output.max(usage.output_tokens))
    }
}

/// Guesses what requests of a queue are counted as; all of them are read by one model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimator {
    tokens_per_byte: f64,
}

impl Default for Estimator {
    fn default() -> Self {
        Self { tokens_per_byte: TOKENS_PER_BYTE }
    }
}

impl Estimator {
    /// What `request` will be counted as.
    pub(super) fn estimate(self, request: &Request) -> Estimate {
        let body = request.body.get();
        let prompt = prompt(amount(body.len() as u64) * self.tokens_per_byte);
        // A body whose bounds are no numbers is refused by the server; it costs its prompt at most.
        let bounds: Bounds = serde_json::from_str(body).unwrap_or_default();
        let named = bounds.max_completion_tokens.or(bounds.max_tokens).or(bounds.max_output_tokens);
        let output = match request.endpoint {
            Endpoint::Completions => named.unwrap_or(COMPLETIONS_DEFAULT),
            Endpoint::ChatCompletions | Endpoint::Responses => named.unwrap_or(0),
            Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Images => 0,
        };
        let choices = bounds.n.max(bounds.best_of).unwrap_or(1).max(1);
        Estimate { bytes: body.len() as u64, prompt, output: output.saturating_mul(choices) }
    }

    /// Learns from an answer to what was estimated.
    pub(super) fn learn(&mut self, estimate: Estimate, usage: Usage) {
        if estimate.bytes > 0 && usage.input_tokens > 0 {
            let seen = amount(usage.input_tokens) / amount(estimate.bytes);
            let learnt = self.tokens_per_byte + (seen - self.tokens_per_byte) * WEIGHT;
            self.tokens_per_byte = learnt.clamp(TOKENS_PER_BYTE_MIN, TOKENS_PER_BYTE_MAX);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "no body has 2^52 bytes, and no prompt so many tokens")]
const fn amount(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below 2^63")]
fn prompt(tokens: f64) -> u64 {
    tokens.ceil() as u64
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn cost(endpoint: Endpoint, body: &str) -> u64 {
        let body = RawValue::from_string(body.to_owned()).unwrap();
        let request = Request { custom_id: "a".to_owned(), endpoint, model: None, stream: None, body };
        Estimator::default().estimate(&request).total()
    }

    #[test]
    fn prompt_and_output_bound_count() {
        let padded = |members: &str| format!("{{{members:<38}}}");
        assert_eq!(cost(Endpoint::ChatCompletions, &padded("")), 10);
        assert_eq!(cost(Endpoint::ChatCompletions, &padded(r#""max_completion_tokens":100,"n":2"#)), 210);
        assert_eq!(cost(Endpoint::Completions, &padded("")), 26);
        assert_eq!(cost(Endpoint::Completions, &padded(r#""max_tokens":5,"best_of":3"#)), 25);
        assert_eq!(cost(Endpoint::Embeddings, &padded(r#""max_tokens":100"#)), 10);
        assert_eq!(cost(Endpoint::ChatCompletions, &padded(r#""max_tokens":"many""#)), 10);
    }

    #[test]
    fn usage_corrects_the_prompt_and_leaves_the_output_bound() {
        let estimate = Estimate { bytes: 160, prompt: 40, output: 100 };
        assert_eq!(estimate.corrected(Usage { input_tokens: 7, output_tokens: 3 }), 107);
        assert_eq!(Estimate::default().corrected(Usage { input_tokens: 7, output_tokens: 30 }), 37);
    }

    #[test]
    fn what_a_byte_makes_is_learnt_from_the_answers_and_bounded() {
        let body = RawValue::from_string(format!("\"{}\"", "x".repeat(998))).unwrap();
        let endpoint = Endpoint::Embeddings;
        let request = Request { custom_id: "a".to_owned(), endpoint, model: None, stream: None, body };
        let learnt = |input_tokens| {
            let mut estimator = Estimator::default();
            for _ in 0..200 {
                let estimate = estimator.estimate(&request);
                estimator.learn(estimate, Usage { input_tokens, output_tokens: 0 });
            }
            estimator.estimate(&request).total()
        };
        assert!((98..=102).contains(&learnt(100)));
        assert!((690..=702).contains(&learnt(700)));
        assert_eq!(learnt(0), 250, "a server that counts nothing teaches nothing");
        assert!(learnt(u64::MAX) <= 2_000);
    }
}
