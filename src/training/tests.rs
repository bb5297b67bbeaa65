//! Every rule of the checks, with the words in which it is told.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const LINE_MAX: u64 = 1 << 20;

fn rules(expected: Expected, model: &str) -> Rules<'_> {
    Rules { expected, model, epochs: None, line_max: LINE_MAX, training: None }
}

fn checked(text: impl AsRef<[u8]>, rules: &Rules<'_>) -> Checked {
    check(text.as_ref(), "t.jsonl", rules, None).unwrap()
}

fn said(text: impl AsRef<[u8]>, rules: &Rules<'_>) -> String {
    checked(text, rules).report.to_string()
}

fn chat(user: &str, assistant: &str) -> String {
    format!(
        r#"{{"messages":[{{"role":"system","content":"s"}},{{"role":"user","content":"{user}"}},{{"role":"assistant","content":"{assistant}"}}]}}"#
    )
}

/// Fifty examples with nothing to remark.
fn good_chats() -> String {
    (0..50).fold(String::new(), |mut text, number| {
        writeln!(text, "{}", chat(&format!("u{number}"), "a")).unwrap();
        text
    })
}

fn pair(prompt: &str, completion: &str) -> String {
    serde_json::json!({ "prompt": prompt, "completion": completion }).to_string() + "\n"
}

/// A hundred pairs with nothing to remark.
fn good_pairs() -> String {
    (0..100).map(|number| pair(&format!("{number} and so on ->"), &format!(" {number} it is END"))).collect()
}

/// What is found in a line that follows fifty good ones, without its place.
fn found_in_chat(line: &str) -> String {
    let report = checked(format!("{}{line}\n", good_chats()), &rules(Expected::Chat, "gpt-4o")).report;
    report.to_string()
}

#[test]
fn good_files_have_nothing_against_them() {
    let chats = checked(good_chats(), &rules(Expected::Chat, "gpt-4o-mini"));
    assert_eq!(chats.report.to_string(), "");
    let figures = chats.figures.unwrap();
    // Three messages of 3 + role + content, and 3 for the reply; two tokens of content where the number has two digits.
    assert_eq!((figures.format, figures.examples, figures.tokens), (Format::Chat, 50, 50 * 19));
    assert_eq!((figures.epochs, figures.epochs_guessed), (3, true));
    assert_eq!(figures.billed_tokens, figures.tokens * 3);
    assert!(!figures.tokens_estimated);
    assert_eq!((figures.context, figures.cut, figures.longest), (Some(65_536), 0, 19));
}

#[test]
fn sample_of_two_equal_pairs_is_refused_and_its_marks_are_recognised() {
    let text = "{\"prompt\":\"1+1=?->\",\"completion\":\"4\\nENDEND\"}\n".repeat(2);
    let checked = checked(text, &Rules { epochs: Some(4), ..rules(Expected::Pairs, "curie") });
    insta::assert_snapshot!(checked.report, @r"
    t.jsonl: error: all completions are equal
      hint: the model would learn to say this whatever it is asked
    t.jsonl: error: all prompts are equal
      hint: leave prompts empty where the model is to write without being asked
    t.jsonl: note: 2 pairs; a few hundred are advised
    t.jsonl: note: each completion is `4\nENDEND`
    t.jsonl: note: each prompt is `1+1=?->`
    t.jsonl: note: prompts end with `->`, completions with `\nENDEND`: use the model with the same separator and `stop`
    t.jsonl:1: warning: this example and 1 more have completions that do not begin with a space
    t.jsonl:2: warning: the same example as on line 1
    ");
    insta::assert_json_snapshot!(checked.figures, @r#"
    {
      "format": "pairs",
      "examples": 2,
      "tokens": 20,
      "tokens_estimated": false,
      "longest": 10,
      "context": 2048,
      "cut": 0,
      "epochs": 4,
      "epochs_guessed": false,
      "billed_tokens": 80,
      "separator": "->",
      "ending": "\nENDEND"
    }
    "#);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of every rule")]
fn lines_of_conversations_are_checked() {
    let user = r#"{"role":"user","content":"u"}"#;
    let system = r#"{"role":"system","content":"s"}"#;
    let answer = r#"{"role":"assistant","content":"a"}"#;
    let of = |messages: &str| format!(r#"{{"messages":[{messages}]}}"#);
    let with = |message: &str| of(&format!("{system},{user},{message}"));
    for (line, expected) in [
        ("{\"messages\":[]".to_owned(), "t.jsonl:51:14: error: invalid JSON: EOF while parsing an object"),
        ("{\"messages\":[]}".to_owned(), "t.jsonl:51:13: error: `messages` is empty"),
        (
            "{\"messages\":\"x\"}".to_owned(),
            "t.jsonl:51:13: error: `messages` is a string, expected an array",
        ),
        ("{\"messages\":[7]}".to_owned(), "t.jsonl:51:14: error: message 1 is a number, expected an object"),
        ("[]".to_owned(), "t.jsonl:51:1: error: "),
        (with(r#"{"content":"a"}"#), "error: message 3 has no `role`"),
        (
            with(r#"{"role":"asistant","content":"a"}"#),
            "unknown role `asistant` of message 3\n  hint: did you mean `assistant`?",
        ),
        (with(r#"{"role":"bot","content":"a"}"#), "hint: expected `system`, `developer`, `user`"),
        (with(r#"{"role":7,"content":"a"}"#), "error: `role` of message 3 is a number, expected a string"),
        (
            with(r#"{"role":"assistant","content":"a","wieght":1}"#),
            "warning: unknown key `wieght` in message 3\n  hint: did you mean `weight`?",
        ),
        (with(r#"{"role":"assistant","role":"user","content":"a"}"#), "error: duplicate key `role`"),
        (with(r#"{"role":"assistant"}"#), "error: message 3 has no `content`"),
        (with(r#"{"role":"assistant","content":""}"#), "error: `content` of message 3 is empty"),
        (
            with(r#"{"role":"assistant","content":null}"#),
            "error: `content` of message 3 is null, expected a string",
        ),
        (with(r#"{"role":"assistant","content":[]}"#), "error: `content` of message 3 is empty"),
        (
            with(r#"{"role":"assistant","content":["x"]}"#),
            "error: a part of message 3 is a string, expected an object",
        ),
        (
            with(r#"{"role":"assistant","content":[{"text":"x"}]}"#),
            "error: a part of message 3 has no `type`",
        ),
        (
            with(r#"{"role":"assistant","content":"\ud800"}"#),
            "error: `content` of message 3 has an escape that stands for no character",
        ),
        (with(r#"{"role":"assistant","tool_calls":[]}"#), "error: message 3 has no `content`"),
        (
            with(r#"{"role":"assistant","content":"a","weight":2}"#),
            "error: `weight` of message 3 is `2`, expected 0 or 1",
        ),
        (
            with(r#"{"role":"assistant","content":"a","weight":0.5}"#),
            "error: `weight` of message 3 is `0.5`, expected 0 or 1",
        ),
        (
            with(r#"{"role":"assistant","content":"a","weight":0}"#),
            "error: `weight` is 0 for every message of the assistant",
        ),
        (
            of(&format!(r#"{system},{{"role":"user","content":"u","weight":1}},{answer}"#)),
            "error: `weight` of message 2, which is not the assistant's",
        ),
        (of(&format!("{system},{user}")), "error: no message of the assistant"),
        (of(&format!("{system},{user},{answer},{user}")), "warning: the last message is not the assistant's"),
        (of(&format!("{user},{answer}")), "t.jsonl:51: note: this example has no system message"),
        (of(&format!("{system},{answer}")), "t.jsonl:51: note: this example has no user message"),
        (
            format!(r#"{{"messages":[{system},{user},{answer}],"tools":{{}}}}"#),
            "error: `tools` is an object, expected an array",
        ),
        (
            format!(r#"{{"messages":[{system},{user},{answer}],"parallel_tool_calls":1}}"#),
            "error: `parallel_tool_calls` is a number",
        ),
        (
            format!(r#"{{"messages":[{system},{user},{answer}],"tool":[]}}"#),
            "warning: unknown key `tool`\n  hint: did you mean `tools`?",
        ),
        (format!(r#"{{"messages":[{answer}],"messages":[]}}"#), "error: duplicate key `messages`"),
        (
            r#"{"prompt":"x","completion":"y"}"#.to_owned(),
            "t.jsonl:51: error: this is a prompt/completion pair, expected a chat example as on line 1",
        ),
        (
            r#"{"text":"x"}"#.to_owned(),
            "t.jsonl:51: error: not an example: found `text`, expected `{\"messages\": […]}`",
        ),
        (String::new(), "t.jsonl:51: error: a blank line, expected an object"),
        (chat("u7", "a"), "t.jsonl:51: warning: the same example as on line 8"),
    ] {
        let report = found_in_chat(&line);
        assert!(report.contains(expected), "{line}\n{report}");
        let findings = report.lines().filter(|line| line.starts_with("t.jsonl")).count();
        assert_eq!(findings, 1, "{line}\n{report}");
    }
}

#[test]
fn what_a_conversation_may_hold_is_let_through() {
    let system = r#"{"role":"developer","content":"s"}"#;
    let user = r#"{"role":"user","content":[{"type":"text","text":"u"},{"type":"image_url","image_url":{"url":"x"}}]}"#;
    for messages in [
        r#"{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},{"role":"tool","tool_call_id":"1","content":"t"},{"role":"assistant","content":"a","weight":1}"#,
        r#"{"role":"assistant","function_call":{"name":"f"}},{"role":"function","name":"f","content":"t"},{"role":"assistant","content":"a"}"#,
        r#"{"role":"assistant","content":"a","weight":0},{"role":"user","name":"n","content":"u"},{"role":"assistant","content":"b"}"#,
    ] {
        let line =
            format!(r#"{{"messages":[{system},{user},{messages}],"tools":[],"parallel_tool_calls":false}}"#);
        assert_eq!(found_in_chat(&line), "", "{line}");
    }
}

#[test]
fn lines_of_preferences_are_checked() {
    let input =
        r#""input":{"messages":[{"role":"user","content":"u"}],"tools":[],"parallel_tool_calls":true}"#;
    let output =
        |key: &str, content: &str| format!(r#""{key}":[{{"role":"assistant","content":"{content}"}}]"#);
    let (good, bad) = (output("preferred_output", "a"), output("non_preferred_output", "b"));
    let line = |number: usize| {
        format!(r#"{{"input":{{"messages":[{{"role":"user","content":"{number}"}}]}},{good},{bad}}}"#)
    };
    let many = (0..50).map(|number| line(number) + "\n").collect::<String>();
    let rules = rules(Expected::Preferences, "gpt-4o");
    assert_eq!(said(&many, &rules), "");
    for (line, expected) in [
        (format!("{{{input},{good}}}"), "t.jsonl:51: error: missing `non_preferred_output`"),
        (format!("{{{good},{bad}}}"), "t.jsonl:51: error: missing `input`"),
        (
            format!("{{\"input\":7,{good},{bad}}}"),
            "t.jsonl:51:10: error: `input` is a number, expected an object",
        ),
        (format!("{{\"input\":{{}},{good},{bad}}}"), "t.jsonl:51: error: missing `messages`"),
        (format!("{{\"input\":{{\"messages\":[]}},{good},{bad}}}"), "error: `messages` is empty"),
        (
            format!("{{{input},{good},{}}}", output("non_preferred_output", "\\u0061")),
            "error: both outputs are the same",
        ),
        (format!("{{{input},{good},\"non_preferred_output\":[]}}"), "error: `non_preferred_output` is empty"),
        (
            format!(r#"{{{input},{good},"non_preferred_output":[{{"role":"user","content":"b"}}]}}"#),
            "`non_preferred_output` has 1 messages, expected exactly one of the assistant\n  hint: its `role`",
        ),
        (
            format!(
                r#"{{{input},{bad},"preferred_output":[{{"role":"assistant","content":"b"}},{{"role":"assistant","content":"c"}}]}}"#
            ),
            "error: `preferred_output` has 2 messages, expected exactly one of the assistant",
        ),
        (format!("{{{input},{good},{bad},\"x\":1}}"), "warning: unknown key `x`"),
    ] {
        let report = said(format!("{many}{line}\n"), &rules);
        assert!(report.contains(expected), "{line}\n{report}");
        assert_eq!(report.matches("t.jsonl").count(), 1, "{line}\n{report}");
    }
}

#[test]
fn lines_of_pairs_are_checked() {
    let rules = rules(Expected::Pairs, "curie");
    assert_eq!(
        said(good_pairs(), &rules),
        "t.jsonl: note: prompts end with ` ->`, completions with ` END`: use the model with the same separator and `stop`\n"
    );
    for (line, expected) in [
        (
            r#"{"Prompt":"p ->","completion":" c END"}"#,
            "t.jsonl:101:11: error: key `Prompt`, expected `prompt`\n  hint: `batchd prepare",
        ),
        (r#"{"prompt":"p ->"}"#, "t.jsonl:101: error: missing `completion`"),
        (r#"{"completion":" c END"}"#, "t.jsonl:101: error: missing `prompt`"),
        (
            r#"{"prompt":null,"completion":" c END"}"#,
            "t.jsonl:101:11: error: `prompt` is null, expected a string",
        ),
        (
            r#"{"prompt":"p ->","completion":7}"#,
            "t.jsonl:101:31: error: `completion` is a number, expected a string",
        ),
        (r#"{"prompt":"p ->","completion":" c END","COMPLETION":" c END"}"#, "error: `completion` twice"),
        (
            r#"{"prompt":"p ->","completion":" c END","id":7}"#,
            "t.jsonl:101: warning: unknown key `id`, expected `prompt` and `completion` alone",
        ),
        (
            r#"{"prompt":"p ->","completion":"c END"}"#,
            "t.jsonl:101: warning: this example has a completion that does not begin with a space",
        ),
        (
            r#"{"prompt":"7 and so on ->","completion":" 7 it is END"}"#,
            "t.jsonl:101: warning: the same example as on line 8",
        ),
    ] {
        let report = said(format!("{}{line}\n", good_pairs()), &rules);
        assert!(report.contains(expected), "{line}\n{report}");
        let findings = report.lines().filter(|line| line.starts_with("t.jsonl")).count();
        assert_eq!(findings, 2, "{line}\n{report}");
    }
    let empty = said(good_pairs() + &pair("p ->", ""), &rules);
    assert!(empty.contains("t.jsonl:101:15: error: `completion` is empty"), "{empty}");
}

#[test]
fn what_pairs_have_in_common_is_judged() {
    let of = |prompt: &dyn Fn(u32) -> String, completion: &dyn Fn(u32) -> String| {
        (0..100).map(|number| pair(&prompt(number), &completion(number))).collect::<String>()
    };
    let prompt = |number: u32| format!("{number} ->");
    let completion = |number: u32| format!(" {number} END");
    for (text, expected) in [
        (
            of(&|number| format!("what {number}"), &completion),
            "warning: the prompts end with no common separator\n  hint: `batchd prepare t.jsonl` adds one",
        ),
        (
            of(&prompt, &|number| format!(" it {number}")),
            "warning: the completions have no common ending to stop at",
        ),
        (of(&|_| "same ->".to_owned(), &completion), "error: all prompts are equal"),
        (of(&prompt, &|_| " same".to_owned()), "error: all completions are equal"),
        (
            of(&|number| format!("Question number: {number} ->"), &completion),
            "note: all prompts begin with `Question number: `",
        ),
        (of(&prompt, &|number| format!(" said {number} END")), "note: all completions begin with ` said `"),
        (
            of(&|number| format!("{number} is the question:"), &completion),
            "note: all prompts end with ` is the question:`",
        ),
        (
            of(&|number| format!("LOUD {number} ->"), &completion),
            "note: more than a third of the letters of the prompts are upper case",
        ),
        (pair("a ->", " b END"), "error: a single pair"),
        (pair("a ->", " b END") + &pair("c ->", " d END"), "note: 2 pairs; a few hundred are advised"),
    ] {
        let report = said(&text, &rules(Expected::Pairs, "curie"));
        assert!(report.contains(expected), "{expected}\n{report}");
    }
    // Where nothing is asked nothing separates, and where there are few answers none needs an end.
    let open = said(of(&|_| String::new(), &completion), &rules(Expected::Pairs, "curie"));
    assert_eq!(open.matches("error").count() + open.matches("warning").count(), 0, "{open}");
    let classes = said(of(&prompt, &|number| format!(" {}", number % 2)), &rules(Expected::Pairs, "curie"));
    assert_eq!(classes.matches("error").count() + classes.matches("warning").count(), 0, "{classes}");
}

#[test]
fn examples_beyond_the_context_are_cut_and_billed_as_cut() {
    let long = good_chats() + &chat("u", &"word ".repeat(5_000)) + "\n";
    let checked = checked(&long, &rules(Expected::Chat, "gpt-3.5-turbo-0613"));
    let report = checked.report.to_string();
    assert!(
        report
            .contains("t.jsonl:51: warning: this example has more than the 4096 tokens that are trained on"),
        "{report}"
    );
    let figures = checked.figures.unwrap();
    assert_eq!((figures.cut, figures.context), (1, Some(4096)));
    assert!(figures.longest > 5_000);
    assert_eq!(figures.billed_tokens, (figures.tokens - figures.longest + 4096) * 3);
    let unknown = said(
        good_pairs() + &pair("p ->", &format!(" {} END", "x".repeat(10_000))),
        &rules(Expected::Any, ""),
    );
    assert!(
        unknown.contains("t.jsonl:101: warning: this example has more than 10000 characters"),
        "{unknown}"
    );
}

#[test]
fn too_few_examples_are_refused_where_the_interface_does() {
    let chats = (0..9).map(|number| chat(&number.to_string(), "a") + "\n").collect::<String>();
    let report = said(&chats, &rules(Expected::Chat, "gpt-4o"));
    assert_eq!(report, "t.jsonl: error: 9 examples, expected at least 10\n");
    let report = said(chats + &chat("9", "a"), &rules(Expected::Chat, "gpt-4o"));
    assert_eq!(report, "t.jsonl: note: 10 examples; 50 to 100 are advised to begin with\n");
    let pairs = pair("a ->", " b END") + &pair("c ->", " d END");
    let report = said(pairs, &rules(Expected::supervised("davinci-002"), "davinci-002"));
    assert!(report.starts_with("t.jsonl: error: 2 examples, expected at least 10\n"), "{report}");
}

#[test]
fn file_of_another_format_is_refused_once_with_what_to_do() {
    let chats = good_chats();
    let pairs = good_pairs();
    let preference = r#"{"input":{},"preferred_output":[],"non_preferred_output":[]}"#;
    let request = r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{}}"#;
    for (text, expected, words) in [
        (
            pairs.as_str(),
            Expected::Chat,
            "t.jsonl:1: error: this is a prompt/completion pair, expected `{\"messages\": […]}`\n  hint: `batchd prepare t.jsonl --to chat` makes conversations of pairs\n",
        ),
        (
            &chats,
            Expected::Pairs,
            "t.jsonl:1: error: this is a chat example, expected `{\"prompt\": …, \"completion\": …}`\n  hint: the legacy interface knows no conversations: take `api = \"jobs\"`\n",
        ),
        (
            &chats,
            Expected::Preferences,
            "t.jsonl:1: error: this is a chat example, expected `{\"input\": {\"messages\": […]}, \"preferred_output\": […], \"non_preferred_output\": […]}`\n  hint: a method other than dpo takes conversations\n",
        ),
        (
            preference,
            Expected::Chat,
            "t.jsonl:1: error: this is a DPO example, expected `{\"messages\": […]}`\n  hint: this is what the method dpo takes\n",
        ),
        (
            request,
            Expected::Chat,
            "t.jsonl:1: error: this is a request, not an example\n  hint: this looks like a file of requests: submit it as a job\n",
        ),
        (
            "{\"text\":1,\"id\":2}\n{\"text\":1}",
            Expected::Any,
            "t.jsonl:1: error: not an example: found `text`, `id`, expected `{\"messages\": […]}` or `{\"prompt\": …, \"completion\": …}`\n",
        ),
        (
            "{}",
            Expected::Chat,
            "t.jsonl:1: error: not an example: found no keys, expected `{\"messages\": […]}`\n",
        ),
    ] {
        let checked = checked(text, &rules(expected, "gpt-4o"));
        assert_eq!(checked.report.to_string(), words);
        assert_eq!(checked.figures, None);
    }
    for (text, expected, format) in [
        (&pairs, Expected::PairsOrChat, Format::Pairs),
        (&chats, Expected::PairsOrChat, Format::Chat),
        (&pairs, Expected::Any, Format::Pairs),
        (&chats, Expected::Any, Format::Chat),
    ] {
        let checked = checked(text, &rules(expected, "davinci-002"));
        assert!(!checked.report.has_errors(), "{}", checked.report);
        assert_eq!(checked.figures.unwrap().format, format);
    }
}

#[test]
fn conversations_to_answer_may_hold_what_the_grader_reads() {
    let line = |number: usize| {
        format!(
            r#"{{"messages":[{{"role":"developer","content":"s"}},{{"role":"user","content":"{number}"}}],"answer":{number}}}"#
        )
    };
    let text = (0..50).map(|number| line(number) + "\n").collect::<String>();
    assert_eq!(said(text, &rules(Expected::Prompts, "o4-mini")), "");
}

#[test]
fn what_is_no_jsonl_is_told_as_what_it_is() {
    let good = chat("u", "a");
    for (text, expected) in [
        (b"".to_vec(), "t.jsonl: error: the file holds no example\n"),
        (
            format!("\u{feff}{}", good_chats()).into_bytes(),
            "t.jsonl:1:1: error: a byte order mark, expected the first object\n  hint: save the file as UTF-8 without BOM\n",
        ),
        (
            b"\n\n".to_vec(),
            "t.jsonl:1: error: a blank line, expected an object\n  hint: take it out\nt.jsonl:2: error: a blank line, expected an object\n  hint: take it out\n",
        ),
        (
            format!("[{good}]").into_bytes(),
            "t.jsonl:1:1: error: a JSON array, expected one object a line\n  hint: write one object a line: `jq -c '.[]' FILE > FILE.jsonl`\n",
        ),
        (
            b"\xff\xfe{\0".to_vec(),
            "t.jsonl:1:1: error: the file is UTF-16, expected UTF-8\n  hint: save it as UTF-8\n",
        ),
        (
            b"{\"messages\":\"\xe9\"}\n".to_vec(),
            "t.jsonl:1:14: error: invalid UTF-8: byte 0xe9\n  hint: save the file as UTF-8\n",
        ),
        (
            b"{\n  \"messages\": []\n}\n".to_vec(),
            "t.jsonl:1:1: error: pretty-printed JSON: one object over many lines, expected one object a line\n  hint: write it without line breaks: `jq -c . FILE > FILE.jsonl`\n",
        ),
    ] {
        assert_eq!(said(text, &rules(Expected::Chat, "gpt-4o")), expected);
    }
    let long = format!("{good}\n{}\n", chat("u", &"x".repeat(1 << 20)));
    assert!(said(long, &rules(Expected::Chat, "gpt-4o")).contains("t.jsonl:2: error: the line has 10"));
}

#[test]
fn validation_file_is_compared_with_the_training_file() {
    let training = checked(good_chats(), &rules(Expected::Chat, "gpt-4o")).fingerprints;
    let text = format!("{}\n{}\n", chat("new", "a"), chat("u7", "a"));
    let report = said(text, &Rules { training: Some(&training), ..rules(Expected::Chat, "gpt-4o") });
    assert_eq!(
        report,
        "t.jsonl:2:1: warning: this example is in the training file, too, on its line 8\n  hint: what was trained \
         on says nothing about what was learned\n"
    );
}

#[test]
fn every_byte_is_copied() {
    let text = good_chats().replace('\n', "\r\n");
    let mut copy = Vec::new();
    let checked =
        check(text.as_bytes(), "t.jsonl", &rules(Expected::Chat, "gpt-4o"), Some(&mut copy)).unwrap();
    assert!(checked.report.is_empty(), "{}", checked.report);
    assert_eq!(copy, text.as_bytes());
}

#[test]
fn file_over_the_size_that_providers_take_is_refused_without_being_kept() {
    // One line after another for ever.
    struct Endless(Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = &self.0[self.1..];
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }
    // Refused at its first line, so that the reading costs little.
    let mut line = b"{\"x\":\"".to_vec();
    line.extend(vec![b'x'; 1 << 19]);
    line.extend(b"\"}\n");
    let checked = check(Endless(line, 0), "t.jsonl", &rules(Expected::Any, ""), None).unwrap();
    let report = checked.report.to_string();
    assert!(report.starts_with("t.jsonl: error: the file has more than 512 MiB\n"), "{report}");
}

#[test]
fn epochs_are_guessed_as_the_provider_chooses_them() {
    for (examples, epochs) in
        [(0, 25), (1, 25), (4, 25), (10, 10), (33, 3), (34, 3), (8_333, 3), (8_334, 2), (25_001, 1)]
    {
        assert_eq!(epochs_for(examples), epochs, "{examples}");
    }
}

fn expectations() -> [Expected; 6] {
    [
        Expected::Pairs,
        Expected::Chat,
        Expected::PairsOrChat,
        Expected::Preferences,
        Expected::Prompts,
        Expected::Any,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for expected in expectations() {
            checked(&bytes, &rules(expected, "qwen3"));
        }
    }

    #[test]
    fn no_shape_of_json_panics(text in r#"(\{("(messages|prompt|completion|input|preferred_output|role|content)":([\[{]|"x"|7|null|,)?){0,4}[}\]]{0,3},?\n?){0,6}"#) {
        for expected in expectations() {
            checked(&text, &rules(expected, "qwen3"));
        }
    }
}
