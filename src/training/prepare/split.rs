//! Classes: what they are called to the provider, and data kept back to see how well they are told apart.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::clock::Seed;
use crate::training::prepare::Pair;

/// The same data are split the same way each time.
const SEED: u64 = 42;

/// Pairs that are kept back at most: more say no more.
const VALIDATION_MAX: usize = 1_000;

/// The parameter that the classes of a file ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Classes {
    /// `classification_n_classes`
    Many(usize),
    /// `classification_positive_class`: of two the one that is the more frequent.
    Positive(String),
}

/// Two parts of a file, each in its order.
#[derive(Debug)]
pub struct Split {
    pub training: Vec<Pair>,
    pub validation: Vec<Pair>,
}

impl Classes {
    pub fn of(pairs: &[Pair]) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for pair in pairs {
            *counts.entry(&pair.completion).or_default() += 1;
        }
        let commonest = counts.iter().max_by_key(|(_, count)| **count).map(|(class, _)| *class);
        match commonest {
            Some(class) if counts.len() == 2 => Self::Positive(class.to_owned()),
            _ => Self::Many(counts.len()),
        }
    }
}

/// Keeps back a fifth of the pairs, at most a thousand. None if a class would then be missing in what is trained on,
/// or nothing would be left to keep back.
pub fn split(pairs: &[Pair]) -> Option<Split> {
    let count = pairs.len();
    let kept = count.saturating_sub(VALIDATION_MAX).max(count * 4 / 5);
    let mut order: Vec<usize> = (0..count).collect();
    Seed::fixed(SEED).derive("prepare").shuffle(&mut order);
    let chosen: BTreeSet<usize> = order.into_iter().take(kept).collect();
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for (at, pair) in pairs.iter().enumerate() {
        if chosen.contains(&at) { &mut training } else { &mut validation }.push(pair.clone());
    }
    let classes = |pairs: &[Pair]| pairs.iter().map(|pair| pair.completion.clone()).collect::<BTreeSet<_>>();
    let prompts: BTreeSet<&str> = training.iter().map(|pair| pair.prompt.as_str()).collect();
    let is_whole = !validation.is_empty() && prompts.len() > 1 && classes(&training) == classes(pairs);
    is_whole.then_some(Split { training, validation })
}
