//! What a job leaves behind: every form of spec, every endpoint, every file of the results folder.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use batchd::simulate::{ImageForm, Latency, Settings};
use serde_json::{Value, json};

use crate::world::{Setup, World, chat_line, chat_lines, custom_ids, names, sorted_ids};

/// The first bytes of a PNG file.
const PNG: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// The text of an answer, without the mark of its body: `[0a1b2c3d] text`.
fn echo(text: &Value) -> &str {
    let text = text.as_str().unwrap();
    text.split_once("] ").unwrap_or_else(|| panic!("`{text}` bears no mark")).1
}

fn chat_echo(record: &Value) -> &str {
    echo(&record["response"]["body"]["choices"][0]["message"]["content"])
}

#[test]
fn batch_lines_of_every_endpoint_are_answered_in_the_order_of_their_file() {
    let world = World::new();
    let line = |id: &str, url: &str, body: Value| {
        json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
    };
    let messages = json!([{"role": "user", "content": "hello"}]);
    let lines = [
        line("chat", "/v1/chat/completions", json!({"model": "m", "messages": messages})),
        line("text", "/v1/completions", json!({"model": "m", "prompt": "once", "max_tokens": 50})),
        line("vector", "/v1/embeddings", json!({"model": "m", "input": "word", "dimensions": 3})),
        line("reply", "/v1/responses", json!({"model": "m", "input": "ask"})),
        line("verdict", "/v1/moderations", json!({"input": "kind words"})),
        line("picture", "/v1/images/generations", json!({"model": "m", "prompt": "a cat"})),
        line("azure", "/chat/completions", json!({"model": "m", "messages": messages})),
    ];
    world.drop("all.jsonl", lines.concat());
    world.run_to_success();

    let results = world.results("all");
    let records = results.output();
    assert_eq!(custom_ids(&records), ["chat", "text", "vector", "reply", "verdict", "picture", "azure"]);
    let body = |index: usize| &records[index]["response"]["body"];
    assert_eq!(chat_echo(&records[0]), "hello");
    assert_eq!(echo(&body(1)["choices"][0]["text"]), "once");
    assert_eq!(body(2)["data"][0]["embedding"].as_array().unwrap().len(), 3);
    assert_eq!(echo(&body(3)["output"][0]["content"][0]["text"]), "ask");
    assert_eq!(body(4)["results"][0]["flagged"], false);
    assert_eq!(body(5)["data"][0]["file"], "images/picture-1.png");
    assert_eq!(chat_echo(&records[6]), "hello");
    assert!(results.names().contains(&"images".to_owned()));
    assert_eq!((world.ledger().paid, world.ledger().requests), (7, 7));
}

#[test]
fn records_have_exactly_the_members_of_openais_output_file() {
    let world = World::new();
    let refused = chat_line("b", "x").replace(r#""model":"m""#, r#""model":"m","n":0"#);
    world.drop("job.jsonl", format!("{}\n{refused}\n", chat_line("a", "x")));
    assert_eq!(world.run_until_idle().code, Some(1));
    let results = world.results("job");
    let id = results.summary()["id"].as_str().unwrap().to_owned();

    let line = results.text("output.jsonl");
    assert!(
        line.starts_with(&format!(
            r#"{{"id":"batch_req_{id}_0","custom_id":"a","response":{{"status_code":200,"request_id":""#
        )),
        "{line}"
    );
    assert!(line.ends_with("}},\"error\":null}\n"), "{line}");
    let members = |record: &Value| record.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let success = &results.output()[0];
    assert_eq!(members(success), ["custom_id", "error", "id", "response"]);
    assert_eq!(members(&success["response"]), ["body", "request_id", "status_code"]);
    assert_ne!(success["response"]["request_id"], "");

    let failure = &results.errors()[0];
    assert_eq!(members(failure), ["custom_id", "error", "id", "response"]);
    assert_eq!(failure["id"], format!("batch_req_{id}_1"));
    assert_eq!(failure["error"], Value::Null, "a refusal has its response alone");
    assert_eq!(failure["response"]["status_code"], 400);
    assert_eq!(failure["response"]["body"]["error"]["param"], "n");
}

#[test]
fn finished_job_leaves_exactly_its_results_its_spec_and_its_summary() {
    let world = World::new();
    let spec = chat_lines(3);
    world.drop("three.jsonl", &spec);
    world.run_to_success();

    assert_eq!(names(&world.jobs_dir()), ["inputs", "rejected"]);
    let results = world.results("three");
    assert_eq!(results.names(), ["job.jsonl", "output.jsonl", "summary.json"]);
    assert_eq!(results.text("job.jsonl"), spec);
    let summary = results.summary();
    assert_eq!(results.outcome(), ("completed".to_owned(), 3, 3, 0));
    assert_eq!((&summary["kind"], &summary["name"]), (&json!("requests"), &json!("three")));
    assert_eq!((&summary["cost_usd"], &summary["maybe_paid_twice"]), (&Value::Null, &json!(0)));
    let usage = |member: &str| -> u64 {
        results.output().iter().map(|r| r["response"]["body"]["usage"][member].as_u64().unwrap()).sum()
    };
    assert_eq!(summary["tokens"]["input"], usage("prompt_tokens"));
    assert_eq!(summary["tokens"]["output"], usage("completion_tokens"));
    for time in ["accepted_at", "finished_at"] {
        assert!(summary[time].as_str().unwrap().ends_with('Z'), "{summary}");
    }
}

#[test]
fn bare_bodies_get_their_endpoint_from_their_members_or_the_files_ending() {
    let world = World::new();
    world.drop(
        "asks.jsonl",
        "\u{feff}{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}\r\n\r\n{\"model\":\"m\",\"prompt\":\"once\"}\r\n\
         {\"model\":\"m\",\"input\":\"word\",\"metadata\":{\"custom_id\":\"mine\"}}",
    );
    world.drop("a.images.jsonl", r#"{"model":"m","prompt":"a cat"}"#);
    world.drop("b.responses.jsonl", r#"{"model":"m","input":"ask"}"#);
    world.drop("c.moderations.jsonl", r#"{"input":"kind"}"#);
    world.drop("d.embeddings.jsonl", r#"{"model":"m","input":"kind"}"#);
    world.run_to_success();

    let records = world.results("asks").output();
    assert_eq!(custom_ids(&records), ["line-1", "line-3", "mine"], "blank lines are counted, not asked");
    let object = |job: &str, index: usize| {
        world.results(job).output()[index]["response"]["body"]["object"].as_str().map(str::to_owned)
    };
    let chat = |name: &str| Some(name.to_owned());
    assert_eq!(object("asks", 0), chat("chat.completion"));
    assert_eq!(object("asks", 1), chat("text_completion"));
    assert_eq!(object("asks", 2), chat("list"));
    assert_eq!(object("b", 0), chat("response"));
    assert!(world.results("a").has("images/line-1-1.png"));
    assert_eq!(world.results("c").output()[0]["response"]["body"]["results"][0]["flagged"], false);
    assert_eq!(object("d", 0), chat("list"));
    let without = r#"{"model":"m","input":"word"}"#;
    assert_eq!(world.sent(without), 1, "embeddings take no metadata");
}

#[test]
fn bodies_reach_the_server_byte_for_byte() {
    let world = World::new();
    let body = r#"{ "model" : "m","messages":[{"role":"user","content":"\u00e9 1.0 café"}], "x_own" : 1.50e3, "z":[ ] }"#;
    world.drop(
        "bytes.jsonl",
        format!(r#"{{"body": {body} , "url":"/v1/chat/completions","method":"POST","custom_id":"a"}}"#),
    );
    world.run_to_success();
    assert_eq!(world.sent(body), 1);
}

#[test]
fn rows_of_csv_jsonl_txt_and_globs_are_rendered_into_requests() {
    let world = World::new();
    world.input("a.csv", "id,text\n7,\"Hello, \"\"you\"\"\"\n8,\"two\nlines\"\n");
    world.input(
        "b.jsonl",
        "{\"sku\":\"s-1\",\"deep\":{\"er\":\"down\"}}\n{\"sku\":\"s-2\",\"deep\":{\"er\":\"up\"}}\n",
    );
    world.input("c.txt", "first line\n\nthird {{ line }}\n");
    world.input("part-1.csv", "text\nfrom one\n");
    world.input("part-2.csv", "text\nfrom two\n");
    world.drop(
        "csv.toml",
        r#"
kind = "chat"
model = "m"
[parameters]
temperature = 0
[input]
file = "inputs/a.csv"
custom_id = "row {{ id }}"
messages = [{ role = "system", content = "be brief" }, { role = "user", content = "Say: {{ text }}" }]
"#,
    );
    world.drop(
        "jsonl.toml",
        "kind = 'embeddings'\nmodel = 'm'\n[input]\nfile = 'inputs/b.jsonl'\ncustom_id = '{{ sku }}'\ninput = 'go {{ deep.er }}'\n",
    );
    world.drop(
        "txt.toml",
        "kind = 'completions'\nmodel = 'm'\n[parameters]\nmax_tokens = 30\n[input]\nfile = 'inputs/c.txt'\n",
    );
    world.drop(
        "glob.toml",
        "kind = 'responses'\nmodel = 'm'\n[input]\nfile = 'inputs/part-*.csv'\ninput = '{{ text }}'\n",
    );
    world.run_to_success();

    let csv = world.results("csv").output();
    assert_eq!(custom_ids(&csv), ["row 7", "row 8"]);
    assert_eq!(chat_echo(&csv[0]), "Say: Hello, \"you\"");
    assert_eq!(chat_echo(&csv[1]), "Say: two\nlines");
    assert_eq!(custom_ids(&world.results("jsonl").output()), ["s-1", "s-2"]);
    let txt = world.results("txt").output();
    assert_eq!(custom_ids(&txt), ["row-1", "row-2"]);
    assert_eq!(echo(&txt[1]["response"]["body"]["choices"][0]["text"]), "third {{ line }}");
    let glob = world.results("glob").output();
    let said: Vec<&str> = glob
        .iter()
        .map(|record| echo(&record["response"]["body"]["output"][0]["content"][0]["text"]))
        .collect();
    assert_eq!(said, ["from one", "from two"]);
    assert!(world.results("csv").has("job.toml"));
    assert_eq!(names(&world.jobs_dir()), ["inputs", "rejected"], "specs are taken, data stays");
    assert_eq!(names(&world.jobs_dir().join("inputs")).len(), 5);
}

#[test]
fn requests_written_out_win_over_the_parameters() {
    let world = World::new();
    world.drop(
        "inline.toml",
        r#"
kind = "completions"
name = "written out"
model = "m"
[parameters]
max_tokens = 30
[[requests]]
custom_id = "a"
prompt = "one"
[[requests]]
prompt = "two"
max_tokens = 1
[output]
order = "input"
"#,
    );
    world.run_to_success();
    let records = world.results("written out").output();
    assert_eq!(custom_ids(&records), ["a", "request-2"]);
    let finish = |index: usize| records[index]["response"]["body"]["choices"][0]["finish_reason"].clone();
    assert_eq!((finish(0), finish(1)), (json!("stop"), json!("length")));
}

#[test]
fn kind_requests_puts_settings_and_parameters_around_batch_lines() {
    let world = World::new();
    let own = chat_line("b", "two").replace(r#""model":"m""#, r#""model":"m","max_tokens":50"#);
    world.input("lines.jsonl", format!("{}\n{own}\n", chat_line("a", "one")));
    world.drop(
        "around.toml",
        "kind = 'requests'\n[parameters]\nmax_tokens = 1\n[input]\nfile = 'inputs/lines.jsonl'\n",
    );
    world.run_to_success();
    let records = world.results("around").output();
    assert_eq!(custom_ids(&records), ["a", "b"]);
    let finish = |index: usize| records[index]["response"]["body"]["choices"][0]["finish_reason"].clone();
    assert_eq!((finish(0), finish(1)), (json!("length"), json!("stop")));
}

#[test]
fn custom_ids_come_back_as_they_were_written() {
    let world = World::new();
    let ids = ["plain", "with space", "quote\" and \\", "日本 é", "../up", "{{ x }}", &"long".repeat(100)];
    let lines = ids.map(|id| {
        let line: Value = serde_json::from_str(&chat_line("ID", "x")).unwrap();
        json!({"custom_id": id, "method": line["method"], "url": line["url"], "body": line["body"]})
            .to_string()
            + "\n"
    });
    world.drop("ids.jsonl", lines.concat());
    world.run_to_success();
    assert_eq!(custom_ids(&world.results("ids").output()), ids);
}

#[test]
fn thousands_of_requests_come_back_whole_and_in_order() {
    let world = World::with(&Setup { concurrency: 64, ..Setup::default() });
    let count = 3000;
    world.drop("many.jsonl", chat_lines(count));
    world.run_to_success();
    let results = world.results("many");
    let in_order: Vec<String> = (0..count).map(|number| format!("r-{number}")).collect();
    let records = results.output();
    assert_eq!(custom_ids(&records), in_order);
    for (number, record) in records.iter().enumerate() {
        assert_eq!(chat_echo(record), format!("question {number}"));
    }
    let ledger = world.ledger();
    assert_eq!((ledger.requests, ledger.paid_twice), (3000, 0));
    assert!(ledger.max_in_flight <= 64, "{ledger:?}");
}

#[test]
fn dropped_folder_is_one_job_with_its_data_beside_it() {
    let world = World::new();
    let folder = world.path("nightly");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("data.txt"), "alpha\nbeta\n").unwrap();
    fs::write(folder.join("job.toml"), "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'data.txt'\n")
        .unwrap();
    fs::rename(&folder, world.jobs_dir().join("nightly")).unwrap();
    world.run_to_success();
    assert_eq!(custom_ids(&world.results("nightly").output()), ["row-1", "row-2"]);
    assert_eq!(names(&world.jobs_dir()), ["inputs", "rejected"]);
}

#[test]
fn errors_file_is_there_only_when_something_failed_and_keeps_the_order_of_input() {
    let world = World::new();
    let refused = |id: &str| chat_line(id, "x").replace(r#""model":"m""#, r#""model":"m","n":0"#) + "\n";
    let lines =
        [refused("z"), chat_line("b", "x") + "\n", refused("a"), chat_line("c", "y") + "\n", refused("m")];
    world.drop("mixed.jsonl", lines.concat());
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1), "some requests failed: {output:?}");
    let results = world.results("mixed");
    assert_eq!(custom_ids(&results.output()), ["b", "c"]);
    assert_eq!(custom_ids(&results.errors()), ["z", "a", "m"]);
    assert_eq!(results.outcome(), ("completed".to_owned(), 5, 2, 3));
    assert_eq!(world.ledger().requests, 5, "a refusal is not asked again");
}

#[test]
fn order_of_completion_is_that_of_the_answers() {
    let server = Settings {
        latency: Latency::between(Duration::ZERO, Duration::from_millis(30)),
        ..Settings::default()
    };
    let world = World::with(&Setup { server, concurrency: 16, ..Setup::default() });
    world.input("lines.jsonl", chat_lines(40));
    world.drop("ordered.toml", "kind = 'requests'\n[input]\nfile = 'inputs/lines.jsonl'\n");
    world.drop(
        "as-they-came.toml",
        "kind = 'requests'\n[input]\nfile = 'inputs/lines.jsonl'\n[output]\norder = 'completion'\n",
    );
    world.run_to_success();
    let in_order: Vec<String> = (0..40).map(|number| format!("r-{number}")).collect();
    assert_eq!(custom_ids(&world.results("ordered").output()), in_order);
    let came = world.results("as-they-came");
    assert_eq!(came.custom_ids(), sorted_ids(40));
    assert_ne!(
        custom_ids(&came.output()),
        in_order,
        "16 at a time, none of them overtaken: the dice would have to be kind"
    );
}

#[test]
fn inline_images_become_files_and_leave_the_record() {
    let world = World::new();
    world.drop(
        "pictures.toml",
        "kind = 'images'\nmodel = 'm'\n[[requests]]\ncustom_id = 'a/b'\nprompt = 'cat'\nn = 2\n[[requests]]\ncustom_id = 'c'\nprompt = 'dog'\n",
    );
    world.run_to_success();
    check_images(&world);
    assert!(!world.results("pictures").text("output.jsonl").contains("b64_json"));
}

#[test]
fn images_by_url_are_downloaded() {
    let server = Settings { images: ImageForm::Url, ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    world.drop(
        "pictures.toml",
        "kind = 'images'\nmodel = 'm'\n[[requests]]\ncustom_id = 'a/b'\nprompt = 'cat'\nn = 2\n[[requests]]\ncustom_id = 'c'\nprompt = 'dog'\n",
    );
    world.run_to_success();
    check_images(&world);
    assert!(!world.results("pictures").text("output.jsonl").contains("http://"));
}

/// Three images of two requests: as files, and named in their records.
fn check_images(world: &World) {
    let results = world.results("pictures");
    let files = names(&results.dir.join("images"));
    assert_eq!(files, ["a%2Fb-1.png", "a%2Fb-2.png", "c-1.png"]);
    let contents: BTreeMap<Vec<u8>, &String> =
        files.iter().map(|name| (fs::read(results.dir.join("images").join(name)).unwrap(), name)).collect();
    assert_eq!(contents.len(), 3, "three different pictures");
    assert!(contents.keys().all(|bytes| bytes.starts_with(&PNG)));
    let records = results.output();
    let named =
        |record: usize, image: usize| records[record]["response"]["body"]["data"][image]["file"].clone();
    assert_eq!(named(0, 1), "images/a%2Fb-2.png");
    assert_eq!(named(1, 0), "images/c-1.png");
    assert_eq!(results.summary()["images"], json!({"written": 3, "failed_downloads": 0}));
    assert_eq!(world.ledger().requests, 2, "a download asks the model nothing");
}
