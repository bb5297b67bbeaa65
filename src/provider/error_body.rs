//! What an error reply says, whichever server wrote it.
//!
//! # Format
//!
//! OpenAI's is `{"error":{"message","type","param","code"}}`. Others leave out or rename what they like: an
//! error that is a string (vLLM's 401), its members at the top (vLLM before 2025), `detail` (`FastAPI`), an
//! array under `errors` (Azure's batches), a code that is a number or null (vLLM, llama.cpp, Ollama), or no
//! JSON at all (proxies).

use std::borrow::Cow;

use crate::diag::printable;
use crate::domain::Response;
use crate::provider::json::Members;

/// The words of an error reply; empty where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// `error.code`; a number as its digits.
    pub(super) code: String,
    /// `error.type`.
    pub(super) kind: String,
    /// For people, on one line. The body itself where it is no JSON.
    pub(super) message: String,
}

impl ErrorBody {
    /// Of a response as records keep it: what is no JSON stands there as a string.
    pub(super) fn of(response: &Response) -> Self {
        Self::read(response.body.get())
    }

    pub(super) fn read(body: &str) -> Self {
        let Some(top) = Members::of(body) else {
            let text = serde_json::from_str(body).map_or(Cow::Borrowed(body), Cow::<str>::Owned);
            return Self { message: line(&text), ..Self::default() };
        };
        if let Some(text) = top.string("error").or_else(|| top.string("detail")) {
            return Self { message: line(&text), ..Self::from_members(&top) };
        }
        let first_of_many = || top.object("errors")?.objects("data")?.into_iter().next();
        let error = top.object("error").or_else(|| top.object("detail")).or_else(first_of_many);
        let found = Self::from_members(error.as_ref().unwrap_or(&top));
        if found.message.is_empty() { Self { message: line(body), ..found } } else { found }
    }

    fn from_members(members: &Members<'_>) -> Self {
        Self {
            code: word(members, "code"),
            kind: word(members, "type"),
            message: members.string("message").map(|text| line(&text)).unwrap_or_default(),
        }
    }

    /// The shortest name of the error: its code, else its type, else the status.
    pub(super) fn name(&self, status: u16) -> String {
        [&self.code, &self.kind]
            .into_iter()
            .find(|word| word.bytes().any(|byte| byte.is_ascii_alphabetic()))
            .cloned()
            .unwrap_or_else(|| status.to_string())
    }
}

/// A string, or a number's digits.
fn word(members: &Members<'_>, name: &str) -> String {
    let text = members.string(name).or_else(|| {
        let digits = members.get(name)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(Cow::Borrowed(digits))
    });
    text.map(|text| line(&text)).unwrap_or_default()
}

fn line(text: &str) -> String {
    printable(text.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_servers_errors_are_read() {
        for (body, code, kind, message) in [
            (
                r#"{"error":{"message":"No","type":"invalid_request_error","param":null,"code":"unknown_parameter"}}"#,
                "unknown_parameter",
                "invalid_request_error",
                "No",
            ),
            (
                r#"{"error":{"message":"No","type":"BadRequestError","code":400}}"#,
                "400",
                "BadRequestError",
                "No",
            ),
            (r#"{"error":{"message":"No","type":"api_error","code":null}}"#, "", "api_error", "No"),
            (r#"{"error":{"code":"429","message":"No"}}"#, "429", "", "No"),
            (
                r#"{"object":"error","message":"No","type":"NotFoundError","code":404}"#,
                "404",
                "NotFoundError",
                "No",
            ),
            (r#"{"error":"Unauthorized"}"#, "", "", "Unauthorized"),
            (r#"{"error":"No","code":"x"}"#, "x", "", "No"),
            (r#"{"detail":"Not Found"}"#, "", "", "Not Found"),
            (r#"{"detail":{"error":1,"message":"No"}}"#, "", "", "No"),
            (r#"{"detail":[{"loc":["body"]}]}"#, "", "", r#"{"detail":[{"loc":["body"]}]}"#),
            (
                r#"{"errors":{"data":[{"code":"model_not_found","message":"No"}],"object":"list"}}"#,
                "model_not_found",
                "",
                "No",
            ),
            (r#"{"message":"No"}"#, "", "", "No"),
            (r#"{"error":{}}"#, "", "", r#"{"error":{}}"#),
            (r#""No""#, "", "", "No"),
            ("Internal Server Error", "", "", "Internal Server Error"),
            ("<html>\n<b>502</b></html>", "", "", "<html>\\n<b>502</b></html>"),
            ("", "", "", ""),
            ("null", "", "", "null"),
        ] {
            let expected = ErrorBody { code: code.into(), kind: kind.into(), message: message.into() };
            assert_eq!(ErrorBody::read(body), expected, "{body}");
        }
    }

    #[test]
    fn an_error_is_named_by_its_words_not_its_numbers() {
        let error = |code: &str, kind: &str| ErrorBody {
            code: code.into(),
            kind: kind.into(),
            message: String::new(),
        };
        assert_eq!(error("rate_limit_exceeded", "tokens").name(429), "rate_limit_exceeded");
        assert_eq!(error("429", "throttling_error").name(429), "throttling_error");
        assert_eq!(error("429", "").name(429), "429");
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in ".*", value in "[\\[\\]{}\":,a-z0-9]*") {
            let read = ErrorBody::read(&body);
            prop_assert!(!read.message.contains('\n'));
            ErrorBody::read(&format!("{{\"error\":{value}}}"));
        }
    }
}
