//! Reads what `/metrics` answers, as strictly as its formats are written down.

use std::collections::{BTreeMap, BTreeSet};

/// Metric families by name.
pub(crate) struct Exposition(BTreeMap<String, Family>);

struct Family {
    kind: String,
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: Labels,
    value: f64,
    /// Where it is a whole number.
    count: Option<u64>,
}

type Labels = BTreeMap<String, String>;

impl Exposition {
    /// Of `text/plain; version=0.0.4`.
    pub(crate) fn of_text(text: &str) -> Self {
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
        Self::read(text, |name, kind| match kind {
            "counter" => {
                assert!(name.ends_with("_total"), "{name}");
                vec![name.to_owned()]
            }
            kind => names_of(name, kind),
        })
    }

    /// Of `application/openmetrics-text`.
    pub(crate) fn of_open_metrics(text: &str) -> Self {
        let text = text.strip_suffix("# EOF\n").expect("it ends with its mark");
        Self::read(text, |name, kind| match kind {
            "counter" => vec![format!("{name}_total")],
            "info" => vec![format!("{name}_info")],
            kind => names_of(name, kind),
        })
    }

    fn read(text: &str, names_of: impl Fn(&str, &str) -> Vec<String>) -> Self {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let (mut current, mut helped) = (String::new(), None);
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.trim().is_empty() && helped.is_none(), "{line}");
                helped = Some(name.to_owned());
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(helped.take().as_deref(), Some(name), "{line}");
                assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
                let family = Family { kind: kind.to_owned(), samples: Vec::new() };
                assert!(families.insert(name.to_owned(), family).is_none(), "{name} is there twice");
                name.clone_into(&mut current);
            } else if let Some(unit) = line.strip_prefix("# UNIT ") {
                let (name, unit) = unit.split_once(' ').unwrap();
                assert!(name == current && name.ends_with(&format!("_{unit}")), "{line}");
                assert!(families[name].samples.is_empty(), "{line}");
            } else {
                let sample = Sample::read(line);
                let family = families.get_mut(&current).expect("a family begins with its words");
                assert!(names_of(&current, &family.kind).contains(&sample.name), "{line} in {current}");
                family.samples.push(sample);
            }
        }
        let read = Self(families);
        read.check();
        read
    }

    fn check(&self) {
        for (name, family) in &self.0 {
            assert!(!family.samples.is_empty(), "{name} has no samples");
            let mut seen = BTreeSet::new();
            for sample in &family.samples {
                assert!(seen.insert((&sample.name, &sample.labels)), "{name}: a sample is there twice");
                assert!(family.kind == "gauge" || sample.value >= 0.0, "{name}");
            }
            if family.kind == "histogram" {
                family.check_histograms(name);
            }
        }
    }

    /// The value of the one sample that has these labels and no others.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sample(name, labels).value
    }

    fn sample(&self, name: &str, labels: &[(&str, &str)]) -> &Sample {
        let labels: Labels =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let found = self.samples(name).find(|sample| sample.labels == labels);
        found.unwrap_or_else(|| panic!("{name} has no sample of {labels:?}"))
    }

    /// The same of a whole number.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.sample(name, labels).count.expect("it is a whole number")
    }

    /// The sum over all samples of that name, all of them whole numbers.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        self.samples(name).map(|sample| sample.count.expect("it is a whole number")).sum()
    }

    /// Every sample of batchd's own, as `name{labels}` and its value.
    pub(crate) fn own(&self) -> BTreeMap<String, f64> {
        let samples = self.0.values().flat_map(|family| &family.samples);
        let own = samples.filter(|sample| sample.name.starts_with("batchd_"));
        own.map(|sample| (format!("{}{:?}", sample.name, sample.labels), sample.value)).collect()
    }

    fn samples(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.0.values().flat_map(|family| &family.samples).filter(move |sample| sample.name == name)
    }
}

fn names_of(name: &str, kind: &str) -> Vec<String> {
    match kind {
        "gauge" => {
            assert!(!name.ends_with("_total"), "{name}");
            vec![name.to_owned()]
        }
        "histogram" => ["bucket", "sum", "count"].map(|suffix| format!("{name}_{suffix}")).to_vec(),
        kind => panic!("`{kind}` is no type that we use ({name})"),
    }
}

impl Family {
    /// Buckets grow up to `+Inf`, which holds as many as are counted.
    fn check_histograms(&self, name: &str) {
        let mut buckets: BTreeMap<Labels, Vec<(f64, u64)>> = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le").expect("a bucket has a bound");
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            buckets.entry(labels).or_default().push((bound, sample.count.unwrap()));
        }
        for (labels, buckets) in buckets {
            let is_rising = |pair: &[(f64, u64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
            assert!(buckets.windows(2).all(is_rising), "{name}: {buckets:?}");
            let is_count = |sample: &&Sample| sample.name.ends_with("_count") && sample.labels == labels;
            let count = self.samples.iter().find(is_count);
            let (last, all) = *buckets.last().unwrap();
            assert!(last.is_infinite() && Some(all) == count.unwrap().count, "{name}");
        }
    }
}

impl Sample {
    /// `name{label="value",…} number`, without a time.
    fn read(line: &str) -> Self {
        let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        let count = value.parse().ok();
        let value: f64 = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value.is_finite(), "{line}");
        let (name, mut rest) = match head.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (head, ""),
        };
        assert!(!head.ends_with("{}"), "{line}");
        let mut labels = BTreeMap::new();
        while !rest.is_empty() {
            let (key, quoted) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = quoted.char_indices();
            let end = loop {
                match chars.next().expect("a value has an end") {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().expect("something is escaped").1 {
                        'n' => '\n',
                        c @ ('"' | '\\') => c,
                        c => panic!("`\\{c}` means nothing: {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(key.to_owned(), value).is_none(), "{line}");
            let behind = quoted.split_at(end + 1).1;
            rest = behind.strip_prefix(',').unwrap_or(behind);
            assert!(behind.is_empty() || behind.starts_with(',') && !rest.is_empty(), "{line}");
        }
        Self { name: name.to_owned(), labels, value, count }
    }
}
