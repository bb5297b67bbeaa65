//! Flex processing: a request that says `"service_tier": "flex"` costs half, may take long, and may find no room.

use std::borrow::Cow;
use std::time::Duration;

use memchr::memmem;
use serde_json::value::RawValue;

use crate::provider::{Settings, Waits};
use crate::reading::json::members;

const KEY: &str = "service_tier";
const FLEX: &str = "\"flex\"";

/// The ordinary tier, by its own name: without the member a project's own default would hold, which may be flex.
const DEFAULT: &str = "\"default\"";

impl Settings {
    /// How long an exchange of `body` may take, as a whole and in its parts. In the flex tier the whole of it may be
    /// spent in a queue, before the first byte.
    pub(super) fn times_of(&self, body: &RawValue) -> (Duration, Waits) {
        if is_flex(body) {
            (self.flex_timeout.max(self.timeout), Waits { first_byte: None, ..self.waits })
        } else {
            (self.timeout, self.waits)
        }
    }
}

/// Whether a request's body asks for the flex tier.
pub fn is_flex(body: &RawValue) -> bool {
    // Few bodies hold the word, and the others are not read for it.
    memmem::find(body.get().as_bytes(), FLEX.as_bytes()).is_some() && !tiers(body.get()).is_empty()
}

/// The body with the ordinary tier in place of flex, and every other byte as it was.
pub fn in_default_tier(body: &RawValue) -> Cow<'_, RawValue> {
    let (text, mut out, mut from) = (body.get(), String::new(), 0);
    for at in tiers(text) {
        out.push_str(text.get(from..at).unwrap_or_default());
        out.push_str(DEFAULT);
        from = at + FLEX.len();
    }
    out.push_str(text.get(from..).unwrap_or_default());
    RawValue::from_string(out).map_or(Cow::Borrowed(body), Cow::Owned)
}

/// Where it asks for flex: once, as the line was checked; but what is sent must not depend on that.
fn tiers(text: &str) -> Vec<usize> {
    let members = members(text).unwrap_or_default();
    members.iter().filter(|m| m.key == KEY && m.value == FLEX).map(|member| member.offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Custom;

    fn body(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn flex_waits_for_its_first_byte_as_long_as_for_all_of_it() {
        let waits = Waits { first_byte: Some(Duration::from_secs(5)), ..Waits::default() };
        let mut settings = Settings {
            name: "test".to_owned(),
            base_url: "http://127.0.0.1/v1".parse().unwrap(),
            api_key: None,
            custom: Custom::default(),
            timeout: Duration::from_mins(10),
            waits,
            max_reply: 1,
            flex_timeout: Duration::from_mins(15),
            stream: false,
        };
        let [flex, other] = [r#"{"service_tier":"flex"}"#, "{}"].map(body);
        let patient = Waits { first_byte: None, ..waits };
        assert_eq!(settings.times_of(&flex), (Duration::from_mins(15), patient));
        assert_eq!(settings.times_of(&other), (Duration::from_mins(10), waits));
        settings.timeout = Duration::from_hours(2);
        assert_eq!(settings.times_of(&flex), (Duration::from_hours(2), patient), "it never shortens");
    }

    #[test]
    fn only_the_tier_is_replaced_and_every_other_byte_stays() {
        for (flex, expected) in [
            (r#"{"service_tier":"flex"}"#, r#"{"service_tier":"default"}"#),
            (
                r#"{ "a":{"service_tier":"flex"}, "service\u005ftier" : "flex" ,"n":1.0e5}"#,
                r#"{ "a":{"service_tier":"flex"}, "service\u005ftier" : "default" ,"n":1.0e5}"#,
            ),
            (
                r#"{"service_tier":"flex","service_tier":"flex"}"#,
                r#"{"service_tier":"default","service_tier":"default"}"#,
            ),
        ] {
            assert!(is_flex(&body(flex)));
            assert_eq!(in_default_tier(&body(flex)).get(), expected);
        }
        for other in [
            r#"{"model":"m","service_tier":"auto"}"#,
            r#"{"service_tier":null}"#,
            r#"{"user":"flex","a":{"service_tier":"flex"}}"#,
            r#"{"service_tier":["flex"]}"#,
            "{}",
            "[\"flex\"]",
        ] {
            assert!(!is_flex(&body(other)), "{other}");
            assert_eq!(in_default_tier(&body(other)).get(), other);
        }
    }
}
