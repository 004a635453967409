//! Linearizability of one key: a register with compare-and-swap.
//!
//! Wing and Gong's search with Lowe's memory: operations are put in an order that keeps to what
//! was over before what began, one after the other, each only where its answer fits; where
//! none fits the search goes back; a set of operations that led to a state is tried once.

use std::collections::HashSet;

use crate::Expect;

/// An operation on the key.  Values are numbers here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Put { value: u32, expect: Expect, done: Done },
    Delete { expect: Expect, done: Done },
    Read(Option<(u32, u64)>),
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    At(u64),
    Refused,
    /// Nobody was told; the revision is known where somebody has read the value.
    Unknown(Option<u64>),
}

/// An operation with the places of its call and its answer.
#[derive(Clone, Debug)]
pub struct Operation {
    pub op: u64,
    pub called: usize,
    /// `usize::MAX`: it may still happen.
    pub returned: usize,
    pub act: Act,
}

/// The key: its value, and its revision as far as that is known.
type State = Option<(u32, Option<u64>)>;

fn fits(state: State, expect: Expect) -> bool {
    match expect {
        Expect::Any => true,
        Expect::Absent => state.is_none(),
        Expect::At(revision) => state.is_some_and(|(_, at)| at == Some(revision)),
    }
}

/// States that the operation can lead to; none where its answer is impossible.
fn step(state: State, act: &Act) -> Vec<State> {
    let newer = |revision: u64| state.and_then(|(_, at)| at).is_none_or(|at| at < revision);
    match *act {
        Act::Read(None) => state.is_none().then_some(state).into_iter().collect(),
        Act::Read(Some((value, revision))) => {
            let same = state.is_some_and(|(v, at)| v == value && at.is_none_or(|at| at == revision));
            same.then_some(Some((value, Some(revision)))).into_iter().collect()
        }
        Act::Put { value, expect, done } => match done {
            Done::At(revision) if fits(state, expect) && newer(revision) => vec![Some((value, Some(revision)))],
            Done::Refused if !fits(state, expect) => vec![state],
            Done::Unknown(revision) if fits(state, expect) => vec![Some((value, revision)), state],
            Done::Unknown(_) => vec![state],
            Done::At(_) | Done::Refused => Vec::new(),
        },
        Act::Delete { expect, done } => {
            let can = state.is_some() && fits(state, expect);
            match done {
                Done::At(revision) if can && newer(revision) => vec![None],
                Done::Refused if !can => vec![state],
                Done::Unknown(_) if can => vec![None, state],
                Done::Unknown(_) => vec![state],
                Done::At(_) | Done::Refused => Vec::new(),
            }
        }
    }
}

/// Which operations are in the order so far: all before the first that is not, and these more.
#[derive(Clone, Default)]
struct Placed {
    first: usize,
    more: Vec<usize>,
}

impl Placed {
    fn has(&self, i: usize) -> bool {
        i < self.first || self.more.binary_search(&i).is_ok()
    }

    fn with(&self, i: usize) -> Placed {
        let mut next = self.clone();
        let at = next.more.partition_point(|m| *m < i);
        next.more.insert(at, i);
        while next.more.first() == Some(&next.first) {
            next.more.remove(0);
            next.first += 1;
        }
        next
    }

    fn len(&self) -> usize {
        self.first + self.more.len()
    }
}

/// Where the search got stuck at its best.
#[derive(Debug)]
pub struct Stuck {
    /// How many operations have a place in an order.
    pub placed: usize,
    /// Those that could come next and do not fit.
    pub next: Vec<u64>,
}

/// Finds an order, or tells where there is none.  `operations` must be sorted by their call.
pub fn linearize(operations: &[Operation]) -> Result<(), Stuck> {
    let mut tried: HashSet<(usize, Vec<usize>, State)> = HashSet::new();
    let mut stack: Vec<(Placed, State)> = vec![(Placed::default(), None)];
    let mut stuck = Stuck { placed: 0, next: Vec::new() };
    while let Some((placed, state)) = stack.pop() {
        if placed.len() == operations.len() {
            return Ok(());
        }
        if !tried.insert((placed.first, placed.more.clone(), state)) {
            continue;
        }
        let next = candidates(operations, &placed);
        if placed.len() >= stuck.placed {
            stuck = Stuck { placed: placed.len(), next: next.iter().map(|i| operations[*i].op).collect() };
        }
        // The last one pushed is tried first: the earliest call, taking effect.
        for i in next.into_iter().rev() {
            for state in step(state, &operations[i].act).into_iter().rev() {
                stack.push((placed.with(i), state));
            }
        }
    }
    Err(stuck)
}

/// Operations that no other one which has no place yet was over before.
fn candidates(operations: &[Operation], placed: &Placed) -> Vec<usize> {
    let mut first_return = usize::MAX;
    let mut found = Vec::new();
    for (i, operation) in operations.iter().enumerate().skip(placed.first) {
        if operation.called > first_return {
            break;
        }
        if !placed.has(i) {
            first_return = first_return.min(operation.returned);
            found.push(i);
        }
    }
    found
}
