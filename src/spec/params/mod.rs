//! Parameters of request bodies: what the API would refuse, told before it is paid for.
//!
//! What the API takes is data (`table.toml`); [`check`] holds a body against it. Whether a finding is a
//! warning or an error is not decided here: servers differ, and the user says how strict theirs is.
//!
//! ```text
//! `temperature` is 3, expected a number from 0 to 2
//! unknown parameter `max_token`
//!   hint: did you mean `max_tokens`?
//! ```
//!
//! # What it does not do
//! - It never changes a body.
//! - It says nothing of members that it does not know, unless they are nearly named like one it knows.
//! - It leaves `model` and `stream: true` to the reader of the spec, which needs the one and refuses the other.

pub(in crate::spec) mod schema;
mod table;
mod value;
mod words;

use crate::domain::Endpoint;
use crate::reading::json::{self, Member};

use table::{Check, Parameter, Rule};
use value::{Checker, decoded};
use words::{Path, cut, shown};

/// One thing that the API would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Byte in the body: of the value, of the key where the name is wrong, or of the object that lacks a member.
    pub offset: usize,
    /// As in [`Diagnostic`](crate::diag::Diagnostic).
    pub message: String,
    pub hint: Option<String>,
}

/// Whether `endpoint` has a parameter of this name.
pub fn takes(endpoint: Endpoint, name: &str) -> bool {
    table::of(endpoint).contains_key(name)
}

/// Tells what is wrong with the parameters in `body`, in no particular order: at most
/// [`Report::SHOWN_MAX`](crate::diag::Report::SHOWN_MAX) findings. A text that is no JSON object has none:
/// the reader of the spec has refused it.
pub fn check(endpoint: Endpoint, body: &str, found: &mut dyn FnMut(Finding)) {
    let Ok(members) = json::members(body) else { return };
    let parameters = table::of(endpoint);
    let model = find(&members, "model").map(|member| decoded(member.value));
    let request = Request { members: &members, model: model.as_deref() };
    let mut checker = Checker::new(body, found);
    checker.duplicate(None, &members);
    // A value that is wrong by itself says enough: what rules add would be about nothing.
    let mut wrong = Vec::new();
    for member in &members {
        if let Some(parameter) = parameters.get(member.key.as_ref()) {
            let before = checker.told();
            judge(&mut checker, parameter, member, endpoint);
            if checker.told() > before {
                wrong.push(parameter.name.as_str());
            }
        } else {
            let current = parameters.values().filter(|parameter| parameter.refusal().is_none());
            checker.unknown(member, None, current.map(|parameter| parameter.name.as_str()));
        }
        if checker.is_full() {
            return;
        }
    }
    for parameter in parameters.values().filter(|parameter| !parameter.rules.is_empty()) {
        let absent = |member: &&Member<'_>| matches!(member.value, "null" | "false");
        let Some(member) = find(&members, &parameter.name).filter(|member| !absent(member)) else { continue };
        if !wrong.contains(&parameter.name.as_str()) {
            let concerning = parameter.rules.iter().filter(|rule| rule.concerns(request.model));
            concerning.for_each(|rule| apply(&mut checker, rule, member, &request));
        }
    }
    for parameter in parameters.values().filter(|parameter| parameter.required) {
        let mut names = std::iter::once(&parameter.name).chain(&parameter.unless);
        if !names.any(|name| find(&members, name).is_some()) {
            let hint = format!("a request to `{endpoint}` needs it");
            checker.tell(body.trim_ascii_start(), format!("`{}` is missing", parameter.name), Some(hint));
        }
    }
}

/// What a rule may ask about beside the member itself.
struct Request<'a> {
    members: &'a [Member<'a>],
    model: Option<&'a str>,
}

/// Of two equal keys servers take the last.
fn find<'m, 'a>(members: &'m [Member<'a>], name: &str) -> Option<&'m Member<'a>> {
    members.iter().rev().find(|member| member.key == name)
}

/// Judges a member by itself.
fn judge<'a>(checker: &mut Checker<'a>, parameter: &'a Parameter, member: &Member<'_>, endpoint: Endpoint) {
    let name = parameter.name.as_str();
    if parameter.null && member.value == "null" {
        return;
    }
    if let Some(instead) = parameter.refusal() {
        let message = if parameter.legacy.is_some() {
            format!("`{name}` is a legacy parameter")
        } else {
            format!("`{name}` is no parameter of a batch request to `{endpoint}`")
        };
        return checker.tell(member.value, message, Some(instead.to_owned()));
    }
    checker.hint = parameter.deprecated.as_deref();
    checker.value(Path::top(name), &parameter.value, member.value);
    checker.hint = None;
}

/// Judges a member by what stands beside it, and by the model.
fn apply<'a>(checker: &mut Checker<'a>, rule: &'a Rule, member: &Member<'_>, request: &Request<'a>) {
    let name = rule.member.as_str();
    if rule.when.as_deref().is_some_and(|when| when != member.value) {
        return;
    }
    let other =
        |name: &str| find(request.members, name).map(|member| member.value).filter(|text| *text != "null");
    let message = match &rule.check {
        Check::Refused => {
            let model =
                request.model.filter(|_| rule.is_of_models()).map(|model| format!("`{}`", cut(model)));
            let by = model.as_deref().unwrap_or("a batch");
            match &rule.when {
                Some(_) => format!("`{name}` is {}, which {by} refuses", shown(member.value)),
                None => format!("`{name}` is refused by {by}"),
            }
        }
        Check::Narrow { value } => {
            checker.hint = rule.hint.as_deref();
            checker.model = request.model;
            checker.value(Path::top(name), value, member.value);
            checker.hint = None;
            checker.model = None;
            return;
        }
        Check::Needs { other: needed, values, or_absent } => {
            let fulfilled = other(needed).map_or(*or_absent, |text| values.iter().any(|value| value == text));
            if fulfilled {
                return;
            }
            let what = if rule.when.is_some() { format!(" {}", shown(member.value)) } else { String::new() };
            format!("`{name}`{what} needs `{needed}` to be {}", values.join(" or "))
        }
        Check::AtLeast { other: lower } => {
            let number = |text: &str| text.parse::<f64>().ok();
            match other(lower).map(|text| (text, number(text))) {
                Some((text, Some(least))) if number(member.value).is_some_and(|value| value < least) => {
                    format!(
                        "`{name}` is {}, expected at least `{lower}`, which is {}",
                        member.value,
                        shown(text)
                    )
                }
                _ => return,
            }
        }
        Check::Apart { other: beside } => {
            if other(beside).is_none() {
                return;
            }
            format!("`{name}` stands beside `{beside}`, expected one of them")
        }
    };
    checker.tell(member.value, message, rule.hint.clone());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::table::{Keys, Shape};
    use super::*;

    const CHAT: Endpoint = Endpoint::ChatCompletions;
    const COMPLETIONS: Endpoint = Endpoint::Completions;
    const IMAGES: Endpoint = Endpoint::Images;
    const EMBEDDINGS: Endpoint = Endpoint::Embeddings;
    const RESPONSES: Endpoint = Endpoint::Responses;
    const MODERATIONS: Endpoint = Endpoint::Moderations;

    fn findings(endpoint: Endpoint, body: &str) -> Vec<Finding> {
        let mut all = Vec::new();
        check(endpoint, body, &mut |finding| all.push(finding));
        all
    }

    /// A whole request of `endpoint`, with `members` in place of what it has of the same names.
    fn body(endpoint: Endpoint, members: &[(&str, &str)]) -> String {
        let least = match endpoint {
            CHAT => ("messages", r#"[{"role":"user","content":"hi"}]"#),
            COMPLETIONS | IMAGES => ("prompt", r#""hi""#),
            EMBEDDINGS | RESPONSES | MODERATIONS => ("input", r#""hi""#),
        };
        let given = members.iter().any(|(name, _)| *name == least.0);
        let all = Some(least).filter(|_| !given).into_iter().chain(members.iter().copied());
        let all: Vec<String> = all.map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", all.join(", "))
    }

    /// The members that the rules of a parameter ask for beside it.
    fn companions<'p>(parameter: &'p Parameter, members: &mut Vec<(&'p str, &'p str)>) {
        for rule in parameter.rules.iter().filter(|rule| rule.concerns(None)) {
            if let Check::Needs { other, values, .. } = &rule.check {
                members.push((other, &values[0]));
            }
        }
    }

    /// Values at the edges of a shape, all within.
    fn good(shape: &Shape) -> Vec<String> {
        let quoted = |text: &str| format!("\"{text}\"");
        match shape {
            Shape::Any => vec!["1".into()],
            Shape::Null => vec!["null".into()],
            Shape::Boolean => vec!["true".into(), "false".into()],
            Shape::Integer { min, max } => {
                vec![min.unwrap_or(-5).to_string(), max.unwrap_or(i64::MAX).to_string()]
            }
            Shape::Number { min, max } => {
                vec![min.unwrap_or(-5e9).to_string(), max.unwrap_or(5e9).to_string()]
            }
            Shape::String(text) if text.one_of.is_empty() => {
                let (min, max) = (text.chars_min.unwrap_or(0), text.chars_max.unwrap_or(100));
                vec![quoted(&"x".repeat(min)), quoted(&"x".repeat(max))]
            }
            Shape::String(text) => text.one_of.iter().map(|word| quoted(word)).collect(),
            Shape::Size(_) => vec![quoted("auto"), quoted("1024x1024")],
            Shape::Array { items_min, items_max, items } => {
                let item = &good(items)[0];
                let of = |count: usize| format!("[{}]", vec![item.as_str(); count].join(","));
                vec![of(items_min.unwrap_or(0)), of(items_max.unwrap_or(10))]
            }
            Shape::Map(map) => {
                let pairs = |count| {
                    (0..count).map(|i| format!("\"{i}\":{}", good(&map.values)[0])).collect::<Vec<_>>()
                };
                vec!["{}".into(), format!("{{{}}}", pairs(map.pairs_max.unwrap_or(100)).join(","))]
            }
            Shape::Object(object) => {
                let whole: Vec<_> =
                    object.members.iter().map(|(k, v)| format!("\"{k}\":{}", good(v)[0])).collect();
                vec![format!("{{{}}}", whole.join(","))]
            }
            Shape::Tagged { tag, cases } => {
                let case = |(value, name): (&String, &String)| {
                    let Shape::Object(mut object) = table::shape(name).clone() else { panic!("{name}") };
                    object.members.remove(tag);
                    let rest = good(&Shape::Object(object))[0].split_off(1);
                    let comma = if rest == "}" { "" } else { "," };
                    format!("{{\"{tag}\":\"{value}\"{comma}{rest}")
                };
                cases.iter().map(case).collect()
            }
            Shape::Either { of } => of.iter().flat_map(good).collect(),
            Shape::Named { name } => good(table::shape(name)),
        }
    }

    /// Values that a shape refuses: of another type, and just past each of its bounds.
    fn bad(shape: &Shape) -> Vec<String> {
        let mut values: Vec<String> = match shape {
            Shape::Any => return Vec::new(),
            Shape::Null | Shape::Boolean | Shape::Either { .. } => Vec::new(),
            Shape::Integer { min, max } => {
                let past = [min.map(|min| min - 1), max.map(|max| max + 1)].into_iter().flatten();
                past.map(|value| value.to_string())
                    .chain(["1.0", "1e1", "99999999999999999999"].map(Into::into))
                    .collect()
            }
            Shape::Number { min, max } => {
                let past = [min.map(|min| min - 0.01), max.map(|max| max + 0.01)].into_iter().flatten();
                past.map(|value| value.to_string()).collect()
            }
            Shape::String(text) => {
                let past = [text.chars_min.map(|min| min - 1), text.chars_max.map(|max| max + 1)]
                    .into_iter()
                    .flatten();
                let odd = (!text.one_of.is_empty()).then(|| "\"hgih\"".to_owned());
                past.map(|count| format!("\"{}\"", "x".repeat(count))).chain(odd).collect()
            }
            Shape::Size(_) => vec!["\"large\"".into(), "\"1024X1024\"".into()],
            Shape::Array { items_min, items_max, items } => {
                let item = &good(items)[0];
                let past = [items_min.map(|min| min - 1), items_max.map(|max| max + 1)].into_iter().flatten();
                let counts = past.map(|count| format!("[{}]", vec![item.as_str(); count].join(",")));
                counts.chain(bad(items).into_iter().map(|bad| format!("[{item},{bad}]"))).collect()
            }
            Shape::Map(map) => {
                let pair = |bad: String| format!("{{\"1\":{bad}}}");
                let pairs: Vec<_> =
                    (0..=map.pairs_max.unwrap_or(0)).map(|i| format!("\"{i}\":\"x\"")).collect();
                let keys = matches!(map.keys, Some(Keys::Integer)).then(|| "{\"a\":1}".to_owned());
                let long = map.key_chars_max.map(|max| format!("{{\"{}\":\"x\"}}", "k".repeat(max + 1)));
                let many = map.pairs_max.map(|_| format!("{{{}}}", pairs.join(",")));
                bad(&map.values).into_iter().map(pair).chain(keys).chain(long).chain(many).collect()
            }
            Shape::Object(object) => {
                let lacking =
                    (!object.required.is_empty() || !object.any_of.is_empty()).then(|| "{}".to_owned());
                let wrong = object.members.iter().flat_map(|(name, shape)| {
                    bad(shape).into_iter().map(move |bad| format!("{{\"{name}\":{bad}}}"))
                });
                lacking.into_iter().chain(wrong).collect()
            }
            Shape::Tagged { tag, .. } => {
                vec!["{}".into(), format!("{{\"{tag}\":\"?\"}}"), format!("{{\"{tag}\":1}}")]
            }
            Shape::Named { name } => return bad(table::shape(name)),
        };
        let fits = |value: &str| good(shape).iter().any(|good| good.as_bytes()[0] == value.as_bytes()[0]);
        let number =
            |value: &str| matches!(shape, Shape::Integer { .. } | Shape::Number { .. }) && value == "7";
        let boolean = |value: &str| value == "true" && matches!(shape, Shape::Boolean);
        let others = ["\"?\"", "7", "true", "[true]", "{\"a\":1}"];
        values
            .extend(others.iter().filter(|v| !fits(v) && !number(v) && !boolean(v)).map(ToString::to_string));
        values
    }

    #[test]
    fn every_good_value_of_the_table_passes() {
        for endpoint in Endpoint::ALL {
            for parameter in table::of(endpoint).values().filter(|parameter| parameter.refusal().is_none()) {
                let mut values = good(&parameter.value);
                values.extend(parameter.null.then(|| "null".to_owned()));
                for value in &values {
                    let refused = |rule: &&Rule| rule.concerns(None) && rule.when.as_ref() == Some(value);
                    if parameter
                        .rules
                        .iter()
                        .find(refused)
                        .is_some_and(|rule| matches!(rule.check, Check::Refused))
                    {
                        continue;
                    }
                    let mut members = vec![(parameter.name.as_str(), value.as_str())];
                    companions(parameter, &mut members);
                    let body = body(endpoint, &members);
                    assert_eq!(findings(endpoint, &body), [], "{endpoint}: {body}");
                }
            }
        }
    }

    #[test]
    fn every_bad_value_of_the_table_is_found_at_its_place() {
        let mut tried = 0;
        for endpoint in Endpoint::ALL {
            for parameter in table::of(endpoint).values() {
                let name = parameter.name.as_str();
                let mut values = bad(&parameter.value);
                values.extend(parameter.refusal().map(|_| "1".to_owned()));
                values.extend((!parameter.null).then(|| "null".to_owned()));
                for value in &values {
                    let body = body(endpoint, &[(name, value)]);
                    let found = findings(endpoint, &body);
                    assert!(!found.is_empty(), "{endpoint} takes {body}");
                    let start = body.find(&format!("\"{name}\": ")).unwrap();
                    let end = start + name.len() + 4 + value.len();
                    for finding in found {
                        assert!((start..=end).contains(&finding.offset), "{finding:?} in {body}");
                        assert!(finding.message.contains(name), "{finding:?} in {body}");
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 700, "{tried}");
    }

    /// One line: the finding as `check` would print it, if there is exactly one.
    fn one(endpoint: Endpoint, body: &str) -> String {
        let found = findings(endpoint, body);
        match found.as_slice() {
            [] => "-".to_owned(),
            [one] => one.hint.iter().fold(one.message.clone(), |text, hint| format!("{text} | {hint}")),
            _ => panic!("{body}: {found:?}"),
        }
    }

    fn rows(endpoint: Endpoint, rows: &[(&str, &str)]) {
        for (members, expected) in rows {
            let object = format!("{{{members}}}");
            let members = json::members(&object).unwrap();
            let members: Vec<_> = members.iter().map(|member| (member.key.as_ref(), member.value)).collect();
            assert_eq!(one(endpoint, &body(endpoint, &members)), *expected, "{object}");
        }
    }

    #[test]
    fn values_of_chat_are_judged() {
        rows(
            CHAT,
            &[
                (r#""temperature": 3"#, "`temperature` is 3, expected a number from 0 to 2"),
                (r#""temperature": "0.5""#, "`temperature` is \"0.5\", expected a number from 0 to 2"),
                (r#""temperature": 1e999"#, "`temperature` is 1e999, expected a number from 0 to 2"),
                (r#""temperature": null"#, "-"),
                (
                    r#""n": 1.0"#,
                    "`n` is 1.0, expected an integer from 1 to 128 | write it without a fraction or an exponent",
                ),
                (r#""stop": ["a", "b", "c", "d", "e"]"#, "`stop` has 5 items, expected 1 to 4"),
                (r#""stop": ["a", 1]"#, "`stop[1]` is 1, expected a string"),
                (r#""stop": 7"#, "`stop` is 7, expected a string or an array of strings"),
                (
                    r#""reasoning_effort": "hgih""#,
                    "`reasoning_effort` is \"hgih\", expected one of `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max` | did you mean `high`?",
                ),
                (
                    r#""logit_bias": {"50256": -101}"#,
                    "`logit_bias.50256` is -101, expected an integer from -100 to 100",
                ),
                (r#""logit_bias": {"the": 1}"#, "key `the` of `logit_bias` is no integer"),
                (
                    r#""metadata": {"run": 7}"#,
                    "`metadata.run` is 7, expected a string of at most 512 characters",
                ),
                (
                    r#""user": 7"#,
                    "`user` is 7, expected a string | `user` is deprecated: `safety_identifier` and `prompt_cache_key` replace it",
                ),
                (r#""user": "me", "seed": 7, "max_tokens": 5, "model": "gpt-4.1-mini""#, "-"),
            ],
        );
    }

    #[test]
    fn parameters_of_other_times_and_endpoints_are_told_with_what_to_do() {
        rows(
            CHAT,
            &[
                (r#""functions": []"#, "`functions` is a legacy parameter | use `tools`"),
                (r#""function_call": "auto""#, "`function_call` is a legacy parameter | use `tool_choice`"),
                (
                    r#""best_of": 2"#,
                    "`best_of` is no parameter of a batch request to `/v1/chat/completions` | remove it: only completions have `best_of`; `n` asks for several answers",
                ),
                (
                    r#""stream_options": {"include_usage": true}"#,
                    "`stream_options` is no parameter of a batch request to `/v1/chat/completions` | remove it: it belongs to `stream`; batchd adds it where it streams by itself",
                ),
                (r#""stream_options": null, "stream": false"#, "-"),
            ],
        );
        rows(
            RESPONSES,
            &[(
                r#""max_tokens": 9"#,
                "`max_tokens` is no parameter of a batch request to `/v1/responses` | use `max_output_tokens`",
            )],
        );
    }

    #[test]
    fn a_name_is_unknown_only_where_it_looks_like_a_slip() {
        rows(
            CHAT,
            &[
                (r#""temprature": 1"#, "unknown parameter `temprature` | did you mean `temperature`?"),
                (r#""max_token": 1"#, "unknown parameter `max_token` | did you mean `max_tokens`?"),
                (r#""top_k": 40, "min_p": 0.1, "min_tokens": 3, "guided_json": {}, "my_own": 1"#, "-"),
                (r#""tool_chioce": "auto""#, "unknown parameter `tool_chioce` | did you mean `tool_choice`?"),
                (
                    r#""n": 1, "n": 2"#,
                    "duplicate key `n`, first given as 1 | servers differ in which of the two they take: leave one",
                ),
            ],
        );
        let body = r#"{"messages": [{"role": "user", "content": "hi"}], "temprature": 1}"#;
        assert_eq!(findings(CHAT, body)[0].offset, body.find("temprature").unwrap());
    }

    #[test]
    fn what_is_missing_is_told() {
        assert_eq!(one(CHAT, "{}"), "`messages` is missing | a request to `/v1/chat/completions` needs it");
        assert_eq!(
            one(IMAGES, " {\"n\": 1}"),
            "`prompt` is missing | a request to `/v1/images/generations` needs it"
        );
        assert_eq!(one(RESPONSES, r#"{"prompt": {"id": "p"}}"#), "-");
        rows(CHAT, &[(r#""messages": []"#, "`messages` has 0 items, expected at least 1")]);
    }

    #[test]
    fn messages_are_judged_by_their_role() {
        const CONTENT: &str = "`messages[0].content` is";
        rows(
            CHAT,
            &[
                (
                    r#""messages": [{"content": "x"}]"#,
                    "`messages[0].role` is missing, expected one of `assistant`, `developer`, `function`, `system`, `tool`, `user`",
                ),
                (
                    r#""messages": [{"role": "usr", "content": "x"}]"#,
                    "`messages[0].role` is \"usr\", expected one of `assistant`, `developer`, `function`, `system`, `tool`, `user` | did you mean `user`?",
                ),
                (r#""messages": [{"role": "user"}]"#, &format!("{CONTENT} missing")),
                (
                    r#""messages": [{"role": "user", "content": null}]"#,
                    &format!("{CONTENT} null, expected a string or an array of objects"),
                ),
                (r#""messages": ["hi"]"#, "`messages[0]` is \"hi\", expected an object"),
                (
                    r#""messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]}]"#,
                    "-",
                ),
                (
                    r#""messages": [{"role": "user", "content": [{"type": "txt", "text": "x"}]}]"#,
                    "`messages[0].content[0].type` is \"txt\", expected one of `file`, `image_url`, `input_audio`, `text` | did you mean `text`?",
                ),
                (
                    r#""messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]"#,
                    "`messages[0].content[0].image_url` is \"u\", expected an object",
                ),
                (
                    r#""messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "c", "content": "1"}]"#,
                    "-",
                ),
                (
                    r#""messages": [{"role": "assistant", "content": null}]"#,
                    "`messages[0]` has no value, expected one of `content`, `tool_calls`, `function_call`, `refusal`, `audio`",
                ),
                (
                    r#""messages": [{"role": "tool", "content": "1"}]"#,
                    "`messages[0].tool_call_id` is missing",
                ),
                (
                    r#""messages": [{"role": "user", "contnet": "a", "content": "b", "reasoning_content": "c"}]"#,
                    "unknown parameter `messages[0].contnet` | did you mean `content`?",
                ),
            ],
        );
    }

    #[test]
    fn tools_and_formats_are_judged() {
        rows(
            CHAT,
            &[
                (r#""response_format": {"type": "json_schema"}"#, "`response_format.json_schema` is missing"),
                (
                    r#""response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}"#,
                    "`response_format.json_schema.name` is \"a b\", expected only letters, digits, `_` and `-`",
                ),
                (
                    r#""response_format": {"type": "json"}"#,
                    "`response_format.type` is \"json\", expected one of `json_object`, `json_schema`, `text`",
                ),
                (
                    r#""tools": [{"type": "function", "function": {"name": "f", "parameters": {"typ": "object"}}}], "tool_choice": {"type": "function", "function": {"name": "f"}}"#,
                    "-",
                ),
                (r#""tools": [{"type": "function", "name": "f"}]"#, "`tools[0].function` is missing"),
                (
                    r#""tool_choice": "any""#,
                    "`tool_choice` is \"any\", expected one of `none`, `auto`, `required`",
                ),
            ],
        );
    }

    #[test]
    fn members_that_need_or_exclude_each_other_are_judged() {
        rows(
            CHAT,
            &[
                (
                    r#""top_logprobs": 2"#,
                    "`top_logprobs` needs `logprobs` to be true | add `\"logprobs\": true`",
                ),
                (
                    r#""top_logprobs": 2, "logprobs": false"#,
                    "`top_logprobs` needs `logprobs` to be true | add `\"logprobs\": true`",
                ),
                (r#""top_logprobs": 2, "logprobs": true"#, "-"),
                (
                    r#""max_tokens": 1, "max_completion_tokens": 1"#,
                    "`max_tokens` stands beside `max_completion_tokens`, expected one of them | keep one of them",
                ),
                (r#""max_tokens": 1, "max_completion_tokens": null"#, "-"),
            ],
        );
        rows(
            COMPLETIONS,
            &[
                (
                    r#""best_of": 2, "n": 3"#,
                    "`best_of` is 2, expected at least `n`, which is 3 | `best_of` answers are made and paid for, the best `n` returned",
                ),
                (r#""best_of": 3, "n": 3"#, "-"),
                (r#""prompt": [1, "a"]"#, "`prompt[1]` is \"a\", expected an integer"),
                (r#""prompt": [[1], [2, 3]]"#, "-"),
            ],
        );
        rows(
            IMAGES,
            &[
                (
                    r#""output_compression": 50"#,
                    "`output_compression` needs `output_format` to be \"jpeg\" or \"webp\" | only jpeg and webp are compressed so",
                ),
                (r#""output_compression": 50, "output_format": "webp""#, "-"),
                (
                    r#""background": "transparent", "output_format": "jpeg""#,
                    "`background` \"transparent\" needs `output_format` to be \"png\" or \"webp\" | only png and webp can be transparent",
                ),
                (r#""background": "transparent""#, "-"),
            ],
        );
        rows(
            RESPONSES,
            &[(
                r#""background": true"#,
                "`background` is true, which a batch refuses | remove it: the answer would come later and elsewhere, and batchd waits for it here",
            )],
        );
    }

    #[test]
    fn rules_of_a_model_hold_for_that_model_alone() {
        rows(
            IMAGES,
            &[
                (
                    r#""model": "gpt-image-2", "response_format": "url""#,
                    "`response_format` is refused by `gpt-image-2` | remove it: GPT image models always send base64; `output_format` is for png, jpeg or webp",
                ),
                (r#""model": "flux", "response_format": "url", "style": "vivid", "size": "33x7""#, "-"),
                (r#""model": "dall-e-3", "style": "vivid", "size": "1792x1024", "quality": "hd""#, "-"),
                (
                    r#""model": "gpt-image-2", "style": "vivid""#,
                    "`style` is refused by `gpt-image-2` | only dall-e-3 has styles: say it in the prompt",
                ),
                (
                    r#""model": "dall-e-3", "n": 2"#,
                    "`n` is 2, expected 1 with `dall-e-3` | dall-e-3 makes one image a request",
                ),
                (
                    r#""model": "gpt-image-2-2026-04-21", "size": "1000x1000""#,
                    "`size` is \"1000x1000\", expected `auto` or `WIDTHxHEIGHT` in pixels, both multiples of 16, no side over 3 times the other, at most 3840x2160 with `gpt-image-2-2026-04-21`",
                ),
                (r#""model": "gpt-image-2.5-flare", "quality": "max""#, "-"),
            ],
        );
        rows(
            CHAT,
            &[
                (
                    r#""model": "gpt-6-luna", "max_tokens": 5"#,
                    "`max_tokens` is refused by `gpt-6-luna` | use `max_completion_tokens`: it counts reasoning tokens too",
                ),
                (
                    r#""model": "gpt-6.2-sol", "reasoning_effort": "none""#,
                    "`reasoning_effort` is \"none\", which `gpt-6.2-sol` refuses | the least that these models take is `minimal` or `low`",
                ),
                (r#""model": "gpt-6-sol", "reasoning_effort": "none", "temperature": 0"#, "-"),
            ],
        );
        rows(
            EMBEDDINGS,
            &[(
                r#""model": "text-embedding-ada-002", "dimensions": 8"#,
                "`dimensions` is refused by `text-embedding-ada-002` | only the text-embedding-3 models take it",
            )],
        );
    }

    /// The names that the API's documentation has today, and had in 2023.
    #[test]
    fn every_documented_parameter_is_in_the_table() {
        let documented = [
            (
                COMPLETIONS,
                "model prompt suffix max_tokens temperature top_p n stream stream_options logprobs echo stop presence_penalty frequency_penalty best_of logit_bias seed user",
            ),
            (
                CHAT,
                "model messages max_completion_tokens max_tokens temperature top_p n stop presence_penalty frequency_penalty logit_bias logprobs top_logprobs response_format tools tool_choice parallel_tool_calls functions function_call reasoning_effort verbosity seed service_tier store metadata modalities audio prediction web_search_options moderation prompt_cache_key prompt_cache_retention prompt_cache_options safety_identifier user stream stream_options best_of",
            ),
            (
                IMAGES,
                "prompt model n size quality response_format output_format output_compression background moderation style stream partial_images complexity frame_count frame_duration_ms svg safety_identifier user",
            ),
            (EMBEDDINGS, "input model encoding_format dimensions user"),
            (
                RESPONSES,
                "model input instructions max_output_tokens temperature top_p reasoning text tools tool_choice store metadata service_tier background background_options truncation previous_response_id conversation prompt include parallel_tool_calls top_logprobs max_tool_calls user safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options stream stream_options context_management moderation",
            ),
            (MODERATIONS, "input model"),
        ];
        for (endpoint, names) in documented {
            for name in names.split(' ') {
                assert!(table::of(endpoint).contains_key(name), "{endpoint} {name}");
            }
        }
    }

    #[test]
    fn the_example_jobs_have_no_findings() {
        let lines = [
            include_str!("../../../jobs/batch.jsonl"),
            include_str!("../../../jobs/bare.chat.jsonl"),
            include_str!("../../../jobs/inputs/mixed.jsonl"),
        ];
        for line in lines.iter().flat_map(|file| file.lines()) {
            let members = json::members(line).unwrap();
            let url = find(&members, "url").map(|url| decoded(url.value).parse().unwrap());
            let body = find(&members, "body").map_or(line, |body| body.value);
            assert_eq!(findings(url.unwrap_or(CHAT), body), [], "{line}");
        }
    }

    #[test]
    fn findings_and_comparisons_have_a_bound() {
        let unknown: Vec<String> = (0..100_000).map(|i| format!("\"temperatur{i}\": 1")).collect();
        let many = findings(CHAT, &format!("{{{}}}", unknown.join(",")));
        assert!(many.len() <= 20, "{}", many.len());
        let body = format!("{{\"stop\": [{}]}}", vec!["1"; 100_000].join(","));
        assert_eq!(findings(CHAT, &body).len(), 20);
        let deep = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(findings(CHAT, &deep).len(), 1);
        let again = format!("{{\"messages\": [], {}\"n\": 1}}", "\"max_tokens\": 1, ".repeat(100_000));
        assert_eq!(findings(CHAT, &again).len(), 2);
    }

    #[test]
    fn half_a_surrogate_and_huge_numbers_are_no_trouble() {
        rows(
            CHAT,
            &[
                (r#""safety_identifier": "\ud800""#, "-"),
                (r#""reasoning_effort": "\u0068igh""#, "-"),
                (
                    r#""seed": 9223372036854775808"#,
                    "`seed` is 9223372036854775808, expected an integer | `seed` is deprecated and only a best effort",
                ),
            ],
        );
        assert_eq!(findings(CHAT, "[]"), []);
        assert_eq!(findings(CHAT, "{\"\\ud800\": 1}"), []);
    }

    fn any_json() -> impl Strategy<Value = String> {
        let scalar = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            any::<i32>().prop_map(|n| n.to_string()),
            any::<f32>().prop_map(|n| serde_json::to_string(&n).unwrap()),
            ".{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
            Just("\"user\"".to_owned()),
            Just("\"text\"".to_owned()),
        ];
        scalar.prop_recursive(5, 40, 6, |inner| {
            let key = prop_oneof![
                "(role|content|type|text|image_url|url|tool_calls|function|name|format|effort)",
                ".{0,6}"
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(|all| format!("[{}]", all.join(" , "))),
                prop::collection::vec((key, inner), 0..5).prop_map(|all| {
                    let pair = |(key, value): &(String, String)| {
                        format!("{}:{value}", serde_json::to_string(key).unwrap())
                    };
                    format!("{{ {} }}", all.iter().map(pair).collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}", cut in 0usize..200) {
            for endpoint in Endpoint::ALL {
                check(endpoint, &text, &mut |_| {});
                let body = body(endpoint, &[("stop", "[\"é\", 1.5]"), ("metadata", "{\"a\": \"b\"}")]);
                check(endpoint, body.get(..cut).unwrap_or(&body), &mut |_| {});
            }
        }

        #[test]
        fn no_value_makes_it_panic_and_places_are_in_the_body(value in any_json()) {
            for endpoint in Endpoint::ALL {
                for name in table::of(endpoint).keys() {
                    let body = body(endpoint, &[(name, &value)]);
                    check(endpoint, &body, &mut |finding| assert!(body.is_char_boundary(finding.offset)));
                }
            }
        }
    }
}
