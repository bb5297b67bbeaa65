//! What a request will cost in tokens, guessed before it is sent.
//!
//! Providers count a request against tokens/min when it arrives, as prompt estimate + output bound × n. The
//! prompt is guessed from its bytes (a token of English is about four) and corrected by the answer's `usage`.

use serde::Deserialize;

use crate::domain::{Endpoint, Request};
use crate::provider::Usage;

/// Bytes of a JSON body that make a token, on the average of English prose.
const BYTES_PER_TOKEN: u64 = 4;

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

/// What `request` will be counted as.
pub(super) fn of(request: &Request) -> Estimate {
    let body = request.body.get();
    let prompt = (body.len() as u64).div_ceil(BYTES_PER_TOKEN);
    // A body whose bounds are no numbers is refused by the server; it costs its prompt at most.
    let bounds: Bounds = serde_json::from_str(body).unwrap_or_default();
    let named = bounds.max_completion_tokens.or(bounds.max_tokens).or(bounds.max_output_tokens);
    let output = match request.endpoint {
        Endpoint::Completions => named.unwrap_or(COMPLETIONS_DEFAULT),
        Endpoint::ChatCompletions | Endpoint::Responses => named.unwrap_or(0),
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Images => 0,
    };
    let choices = bounds.n.max(bounds.best_of).unwrap_or(1).max(1);
    Estimate { prompt, output: output.saturating_mul(choices) }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    fn cost(endpoint: Endpoint, body: &str) -> u64 {
        let body = RawValue::from_string(body.to_owned()).unwrap();
        of(&Request { custom_id: "a".to_owned(), endpoint, model: None, stream: None, body }).total()
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
        let estimate = Estimate { prompt: 40, output: 100 };
        assert_eq!(estimate.corrected(Usage { input_tokens: 7, output_tokens: 3 }), 107);
        assert_eq!(Estimate::default().corrected(Usage { input_tokens: 7, output_tokens: 30 }), 37);
    }
}
