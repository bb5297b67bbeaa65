//! When to come back, and how much is left: `retry-after-ms`, `Retry-After` and `x-ratelimit-*`.
//!
//! Servers write these by hand, so everything that makes no sense is as if it were absent: a wrong hint must
//! neither stop a job for ever nor hammer a server.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

use crate::domain::Timestamp;
use crate::provider::RateHeaders;

/// A daily quota may say "tomorrow". What says more is a mistake or an attack, and tomorrow is asked again.
const HINT_MAX: Duration = Duration::from_hours(24);

/// No server means more seconds than a year has: it is a date in seconds, or a mistake, and nobody should wait a day
/// for it.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// As LiteLLM's proxy hands on what the server behind it says. It has none of its own when its own limits refuse.
const BEHIND: HeaderName = HeaderName::from_static("llm_provider-retry-after");
const BEHIND_MS: HeaderName = HeaderName::from_static("llm_provider-retry-after-ms");
const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// How long the server asks to wait: more than zero, at most a day. A date counts from the reply's own
/// `Date`, so that a clock that is wrong here or there does no harm, and from `now` where there is none.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let says = |[millis, seconds]: [&HeaderName; 2]| {
        let millis = text(headers, millis).and_then(decimal).and_then(|millis| meant(millis / 1000.0));
        millis.and_then(wait).or_else(|| {
            let hint = text(headers, seconds)?;
            match decimal(hint) {
                Some(seconds) => wait(meant(seconds)?),
                None => Some(date(hint)?.since(text(headers, &DATE).and_then(date).unwrap_or(now))),
            }
        })
    };
    let hint = says([&RETRY_AFTER_MS, &RETRY_AFTER]).or_else(|| says([&BEHIND_MS, &BEHIND]))?;
    (!hint.is_zero()).then(|| hint.min(HINT_MAX))
}

fn meant(seconds: f64) -> Option<f64> {
    (seconds <= SECONDS_MAX).then_some(seconds)
}

/// What the reply says of the server's rate limits.
pub(super) fn rate_headers(headers: &HeaderMap) -> RateHeaders {
    // Azure sends -1 for "unknown": that is no number here, and so absent.
    let count = |name| text(headers, name)?.parse().ok();
    let reset = |name| text(headers, name).and_then(go_duration);
    RateHeaders {
        limit_requests: count(&LIMIT_REQUESTS),
        remaining_requests: count(&REMAINING_REQUESTS),
        reset_requests: reset(&RESET_REQUESTS),
        limit_tokens: count(&LIMIT_TOKENS),
        remaining_tokens: count(&REMAINING_TOKENS),
        reset_tokens: reset(&RESET_TOKENS),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Digits with at most one point: no sign, no exponent, no `inf`, which Rust would take.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { text.parse().ok() } else { None }
}

fn wait(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds.min(HINT_MAX.as_secs_f64())).ok()
}

fn date(text: &str) -> Option<Timestamp> {
    let date = DateTime::parse_from_rfc2822(text).ok()?.with_timezone(&Utc);
    u64::try_from(date.timestamp_millis()).ok().map(Timestamp::from_millis)
}

/// A duration as Go prints it (`1h0m0s`, `2m52.8s`, `12ms`), or a bare number of seconds, as Azure has it.
/// At most a day.
fn go_duration(text: &str) -> Option<Duration> {
    if let Some(seconds) = decimal(text) {
        return wait(seconds);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (number, behind) = split_where(rest, |c| !c.is_ascii_digit() && c != '.')?;
        let (unit, behind) = split_where(behind, |c| c.is_ascii_digit() || c == '.').unwrap_or((behind, ""));
        seconds += decimal(number)? * unit_seconds(unit)?;
        rest = behind;
    }
    if text.is_empty() { None } else { wait(seconds) }
}

fn split_where(text: &str, end: impl Fn(char) -> bool) -> Option<(&str, &str)> {
    text.split_at_checked(text.find(end)?)
}

fn unit_seconds(unit: &str) -> Option<f64> {
    match unit {
        "h" => Some(3600.0),
        "m" => Some(60.0),
        "s" => Some(1.0),
        "ms" => Some(1e-3),
        // The micro sign and the Greek letter: Go prints the one and reads both.
        "us" | "\u{b5}s" | "\u{3bc}s" => Some(1e-6),
        "ns" => Some(1e-9),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT

    fn hint(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        let headers = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        retry_after(&headers.collect(), NOW)
    }

    #[test]
    fn hints_are_taken_in_every_form_and_bounded() {
        let secs = |s| Some(Duration::from_secs(s));
        for (value, expected) in [
            ("3", secs(3)),
            (" 3 ", secs(3)),
            ("1.5", Some(Duration::from_millis(1500))),
            ("7200", secs(7200)),
            ("86400", secs(86400)),
            ("86401", secs(86400)),
            ("31536000", secs(86400)),
            ("31536001", None),
            ("1795401193", None),
            ("1000000000000000000", None),
            ("0", None),
            ("0.0", None),
            ("-5", None),
            ("1e18", None),
            ("inf", None),
            ("nan", None),
            ("soon", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("Sun, 06 Nov 1994 08:50:37 GMT", secs(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Sat, 05 Nov 1994 08:49:37 GMT", None),
            ("Fri, 31 Dec 1999 23:59:59 GMT", secs(86400)),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(hint(&[("retry-after", value)]), expected, "{value:?}");
        }
        assert_eq!(hint(&[]), None);
    }

    #[test]
    fn milliseconds_go_before_seconds_unless_they_make_no_sense() {
        let both = |ms, s| hint(&[("retry-after-ms", ms), ("retry-after", s)]);
        assert_eq!(both("250", "9"), Some(Duration::from_millis(250)));
        assert_eq!(both("soon", "9"), Some(Duration::from_secs(9)));
        assert_eq!(both("-1", "9"), Some(Duration::from_secs(9)));
        assert_eq!(both("1795401193000", "9"), Some(Duration::from_secs(9)));
    }

    #[test]
    fn what_a_proxy_hands_on_counts_where_it_says_nothing_itself() {
        assert_eq!(hint(&[("llm_provider-retry-after", "60")]), Some(Duration::from_mins(1)));
        let all = [
            ("llm_provider-retry-after", "60"),
            ("llm_provider-retry-after-ms", "500"),
            ("retry-after", "2"),
        ];
        assert_eq!(hint(&all), Some(Duration::from_secs(2)));
        assert_eq!(hint(&all[..2]), Some(Duration::from_millis(500)));
    }

    #[test]
    fn dates_count_from_the_servers_own_clock() {
        let wait = hint(&[
            ("date", "Mon, 02 Jan 2040 00:00:00 GMT"),
            ("retry-after", "Mon, 02 Jan 2040 00:00:30 GMT"),
        ]);
        assert_eq!(wait, Some(Duration::from_secs(30)));
    }

    #[test]
    fn rate_limits_are_read_as_openai_and_azure_write_them() {
        for (value, expected) in [
            ("1s", Some(Duration::from_secs(1))),
            ("6m0s", Some(Duration::from_mins(6))),
            ("1h0m0s", Some(Duration::from_hours(1))),
            ("12ms", Some(Duration::from_millis(12))),
            ("2m52.8s", Some(Duration::from_millis(172_800))),
            ("64", Some(Duration::from_secs(64))),
            ("0s", Some(Duration::ZERO)),
            ("500us", Some(Duration::from_micros(500))),
            ("800ns", Some(Duration::from_nanos(800))),
            ("99999h", Some(HINT_MAX)),
            ("", None),
            ("s", None),
            ("5", Some(Duration::from_secs(5))),
            ("5x", None),
            ("5m3", None),
            ("-5s", None),
            ("1.1.1s", None),
        ] {
            assert_eq!(go_duration(value), expected, "{value:?}");
        }
        assert_eq!(go_duration("500\u{b5}s"), Some(Duration::from_micros(500)));
        assert_eq!(go_duration("500\u{3bc}s"), Some(Duration::from_micros(500)));

        let mut headers = HeaderMap::new();
        headers.insert(LIMIT_REQUESTS, HeaderValue::from_static("60"));
        headers.insert(REMAINING_REQUESTS, HeaderValue::from_static("59"));
        headers.insert(REMAINING_TOKENS, HeaderValue::from_static("-1"));
        headers.insert(RESET_TOKENS, HeaderValue::from_static("6m0s"));
        let expected = RateHeaders {
            limit_requests: Some(60),
            remaining_requests: Some(59),
            reset_tokens: Some(Duration::from_mins(6)),
            ..RateHeaders::default()
        };
        assert_eq!(rate_headers(&headers), expected);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_wait_more_than_a_day(bytes in any::<Vec<u8>>(), number in "[0-9.hmsuµnμ]{0,24}") {
            for bytes in [bytes.as_slice(), number.as_bytes()] {
                let Ok(value) = HeaderValue::from_bytes(bytes) else { continue };
                let headers: HeaderMap =
                    [RETRY_AFTER, RETRY_AFTER_MS, DATE, RESET_TOKENS, LIMIT_TOKENS].map(|name| (name, value.clone())).into_iter().collect();
                prop_assert!(retry_after(&headers, NOW).is_none_or(|wait| wait <= HINT_MAX && !wait.is_zero()));
                prop_assert!(rate_headers(&headers).reset_tokens.is_none_or(|wait| wait <= HINT_MAX));
            }
            prop_assert!(go_duration(&number).is_none_or(|wait| wait <= HINT_MAX));
        }
    }
}
