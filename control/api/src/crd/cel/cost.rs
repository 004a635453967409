//! What an evaluation may cost. The interpreter cannot be stopped, so expressions are rewritten to count: whatever
//! goes through a list or map pays for all of it first, what is put together or copied pays for its parts by their real
//! size, and what makes long texts out of many says how long. As each unit stands for a bounded number of bytes, the
//! units bound the memory too.

use std::cell::Cell;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{CelBytes, CelInt, CelOptional, CelString, DYN_TYPE, INT_TYPE, Kind, STRING_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{DeclarationError, Env, ExecutionError};

/// Units of one expression, as upstream's limit of a call; a unit is about a step of the interpreter.
pub(super) const PER_CALL: i64 = 1_000_000;
/// Units of all expressions over one object.
pub(super) const PER_OBJECT: i64 = 10_000_000;
/// The longest text that `replace` and `join` make, bytes.
const MAX_TEXT: usize = 8 << 20;
/// Bytes of a text that count as one step.
const TEXT_STEP: usize = 64;

/// Bytes of a text that count as one step where a longer one is made of it; upstream's.
const ADD_STEP: i64 = 10;

/// Steps of a charge that is for a look-up.
const LOOKUP: i64 = -1;

const CHARGE: &str = "@charge";
const ROOM: &str = "@room";
const SIZE: &str = "@size";
/// What `matches` becomes.
pub(super) const MATCHES: &str = "@matches";
/// What the interpreter says when nothing is left; upstream's words.
pub(super) const EXCEEDED: &str = "operation cancelled: actual cost limit exceeded";

thread_local! {
    static LEFT: Cell<i64> = const { Cell::new(0) };
    static LONGEST: Cell<usize> = const { Cell::new(0) };
}

/// Begins an evaluation that has `units`, over values whose longest text has `longest` bytes.
pub(super) fn begin(units: i64, longest: usize) {
    LEFT.set(units);
    LONGEST.set(longest);
}

/// The units that are left; negative: it was too much.
pub(super) fn left() -> i64 {
    LEFT.get()
}

fn exceeded(function: &str) -> ExecutionError {
    ExecutionError::FunctionError { function: function.into(), message: EXCEEDED.into() }
}

/// Takes units; fails when there are not enough.
pub(super) fn pay(units: i64) -> Result<(), ExecutionError> {
    LEFT.set(LEFT.get().saturating_sub(units).max(-1));
    if LEFT.get() < 0 { Err(exceeded(CHARGE)) } else { Ok(()) }
}

/// Declares what rewritten expressions call.
pub(super) fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_overload(CHARGE, "charge", vec![DYN_TYPE, INT_TYPE, INT_TYPE], charge)?;
    env.add_overload(SIZE, "size_of", vec![DYN_TYPE, INT_TYPE], size)?;
    env.add_overload(ROOM, "room", vec![DYN_TYPE, STRING_TYPE], room)
}

/// Bytes of a text; 0: it is something else.
fn length(value: &dyn Val) -> i64 {
    let text = value.downcast_ref::<CelString<'_>>().map(|s| s.inner().len());
    let length = text.or_else(|| value.downcast_ref::<CelBytes<'_>>().map(|b| b.inner().len()));
    length.map_or(0, |l| i64::try_from(l).unwrap_or(i64::MAX))
}

/// Values in a list or map, with all that is in them: each step of a comprehension copies one. So many bytes of a
/// text count as one more.
fn nodes(value: &dyn Val, bytes: i64) -> i64 {
    if let Some(inner) = value.downcast_ref::<CelOptional<'_>>().and_then(|o| o.inner()) {
        return nodes(inner, bytes).saturating_add(1);
    }
    let Some(iterable) = value.as_iterable() else { return 1 + length(value) / bytes };
    let (mut all, mut count) = (iterable.iter(), 1);
    let map = value.get_type().kind() == Kind::Map;
    while let Some(item) = all.next() {
        count += match value.as_indexer().filter(|_| map).map(|i| i.get(item)) {
            Some(Ok(entry)) => nodes(item, bytes).saturating_add(nodes(entry.as_ref(), bytes)),
            _ => nodes(item, bytes),
        };
    }
    count
}

fn int(value: &CowVal<'_, '_>) -> i64 {
    value.downcast_ref::<CelInt>().map_or(0, |i| *i.inner())
}

/// `@charge(range, steps, texts)`: pays for a comprehension over `range` whose body has so many steps, and so many
/// of them that read or make texts; gives the range. No steps: it is only looked through; fewer ([`LOOKUP`]): something
/// is looked up in it.
fn charge<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let (steps, texts) = (int(&args[1]), int(&args[2]));
    let range = args.swap_remove(0);
    let size = range.as_sizer().map_or(0, |s| *s.size().inner());
    if steps == LOOKUP {
        let map = range.get_type().kind() == Kind::Map;
        pay(if map { 1 } else { size })?;
        return Ok(range);
    }
    let long = i64::try_from(LONGEST.get() / TEXT_STEP).unwrap_or(i64::MAX);
    let body = steps.saturating_add(texts.saturating_mul(long.saturating_add(1)));
    pay(nodes(range.as_ref(), TEXT_STEP as i64).saturating_add(size.saturating_mul(body)))?;
    Ok(range)
}

/// `@size(value, bytes)`: pays for all of a value that is about to be copied or read, of whose texts so many bytes are
/// a step; gives the value.
fn size<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let bytes = int(&args[1]).max(1);
    let value = args.swap_remove(0);
    pay(nodes(value.as_ref(), bytes) - 1)?;
    Ok(value)
}

/// `@room(target, text)`: whether the text fits as often as the target has places for it; gives the target.
fn room<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = args[1].downcast_ref::<CelString<'_>>().map_or(0, |s| s.inner().len());
    let target = args.swap_remove(0);
    let places = match target.downcast_ref::<CelString<'_>>() {
        Some(s) => s.inner().len() + 1,
        None => target.as_sizer().map_or(0, |s| usize::try_from(*s.size().inner()).unwrap_or(usize::MAX)),
    };
    if places.saturating_mul(text) > MAX_TEXT {
        LEFT.set(-1);
        return Err(exceeded(ROOM));
    }
    pay(i64::try_from(places.saturating_mul(text) / TEXT_STEP).unwrap_or(i64::MAX))?;
    Ok(target)
}

/// Functions whose work grows with the length of texts.
fn reads_texts(name: &str) -> bool {
    matches!(
        name,
        "contains"
            | "matches"
            | "find"
            | "findAll"
            | "replace"
            | "split"
            | "join"
            | "format"
            | "indexOf"
            | "lastIndexOf"
            | "lowerAscii"
            | "upperAscii"
            | "trim"
            | "substring"
            | "url"
            | "isURL"
            | "quantity"
    )
}

/// Functions whose time does not grow with what they are given.
fn is_cheap(name: &str) -> bool {
    matches!(name, "size" | "hasValue" | "type" | "startsWith" | "endsWith")
}

/// Whether what stands before a call's name is the first part of that name.
fn is_namespace(e: &IdedExpr, function: &str) -> bool {
    let namespace = |name: &str| matches!(name, "optional" | "sets" | "math" | "strings" | "lists" | "ip" | "cidr");
    matches!(&e.expr, Expr::Ident(name) if namespace(name)) && !matches!(function, "split" | "findAll")
}

/// Makes the parts of a call pay for their size, where it copies or reads them.
fn sized(c: &mut CallExpr) {
    let name = c.func_name.as_str();
    let bytes = match name {
        operators::ADD => ADD_STEP,
        // Each byte may become a text of its own.
        "split" | "findAll" => 1,
        // Operators, and what is put in here.
        _ if !name.starts_with(|first: char| first.is_ascii_alphabetic()) || is_cheap(name) => return,
        _ => TEXT_STEP as i64,
    };
    let target = c.target.as_deref_mut().filter(|t| !is_namespace(t, name));
    target.into_iter().chain(&mut c.args).for_each(|part| size_of(part, bytes));
}

/// Makes a part of an expression pay for its size.
fn size_of(e: &mut IdedExpr, bytes: i64) {
    let free = match &e.expr {
        // The interpreter appends to a comprehension's own list in place, if it sees this shape; and what is in a list
        // has paid.
        Expr::Ident(name) => name.starts_with('@'),
        Expr::Literal(_) | Expr::List(_) | Expr::Map(_) => true,
        _ => false,
    };
    if !free {
        let value = std::mem::take(e);
        *e = call(SIZE, vec![value, literal(bytes)]);
    }
}

/// How deep an expression nests.
pub(super) fn depth(e: &IdedExpr) -> usize {
    let mut below = 0;
    for_children(e, &mut |child| below = below.max(depth(child)));
    below + 1
}

/// Steps of an expression, but for comprehensions in it, which pay for themselves; and how many read texts.
pub(super) fn steps(e: &IdedExpr) -> (i64, i64) {
    let mut total = match &e.expr {
        // A pattern may be compiled anew, and pays then for the rest itself.
        Expr::Call(call) if matches!(call.func_name.as_str(), "matches" | "find" | "findAll") => (100, 1),
        Expr::Call(call) if reads_texts(&call.func_name) => (1, 1),
        _ => (1, 0),
    };
    if let Expr::Comprehension(c) = &e.expr {
        total = add(total, steps(&c.iter_range));
        return add(total, steps(&c.accu_init));
    }
    for_children(e, &mut |child| total = add(total, steps(child)));
    total
}

fn add(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    (a.0 + b.0, a.1 + b.1)
}

/// Calls `f` with the direct parts of an expression.
pub(super) fn for_children(e: &IdedExpr, f: &mut dyn FnMut(&IdedExpr)) {
    match &e.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|t| f(t));
            call.args.iter().for_each(f);
        }
        Expr::Comprehension(c) => {
            [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result].into_iter().for_each(f);
        }
        Expr::List(list) => list.elements.iter().for_each(f),
        Expr::Map(map) => map.entries.iter().for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(m) => [&m.key, &m.value].into_iter().for_each(&mut *f),
            EntryExpr::StructField(s) => f(&s.value),
        }),
        Expr::Struct(s) => s.entries.iter().for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(m) => [&m.key, &m.value].into_iter().for_each(&mut *f),
            EntryExpr::StructField(s) => f(&s.value),
        }),
        Expr::Select(select) => f(&select.operand),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn literal(n: i64) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Int(n.into())) }
}

fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: name.into(), target: None, args }) }
}

/// Makes what a list or map is made of count.
fn part(e: &mut IdedExpr) {
    rewrite(e);
    size_of(e, TEXT_STEP as i64);
}

/// Makes an expression count.
pub(super) fn rewrite(e: &mut IdedExpr) {
    match &mut e.expr {
        Expr::Call(c) => {
            c.target.iter_mut().for_each(|t| rewrite(t));
            c.args.iter_mut().for_each(rewrite);
            sized(c);
            if c.func_name == "matches" {
                c.func_name = MATCHES.into();
            }
            let is_literal = |e: &IdedExpr| matches!(e.expr, Expr::Literal(_));
            let looked = match c.func_name.as_str() {
                operators::IN => Some((1, LOOKUP)),
                operators::EQUALS | operators::NOT_EQUALS if !c.args.iter().any(is_literal) => Some((0, 0)),
                _ => None,
            };
            if let Some((at, steps)) = looked
                && let Some(arg) = c.args.get_mut(at)
            {
                let value = std::mem::take(arg);
                *arg = call(CHARGE, vec![value, literal(steps), literal(0)]);
            }
            let text = match (c.func_name.as_str(), c.args.len()) {
                ("replace", 2 | 3) => c.args.get(1),
                ("join", 1) => c.args.first(),
                _ => None,
            };
            if let Some(text) = text.cloned()
                && let Some(target) = c.target.take()
            {
                c.target = Some(Box::new(call(ROOM, vec![*target, text])));
            }
        }
        Expr::Comprehension(c) => {
            let (a, b) = (steps(&c.loop_cond), steps(&c.loop_step));
            let (steps, texts) = add(a, b);
            [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result]
                .into_iter()
                .for_each(rewrite);
            let range = std::mem::take(&mut c.iter_range);
            c.iter_range = call(CHARGE, vec![range, literal(steps), literal(texts)]);
        }
        Expr::List(list) => list.elements.iter_mut().for_each(part),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| match &mut entry.expr {
            EntryExpr::MapEntry(m) => [&mut m.key, &mut m.value].into_iter().for_each(part),
            EntryExpr::StructField(s) => part(&mut s.value),
        }),
        Expr::Struct(s) => s.entries.iter_mut().for_each(|entry| match &mut entry.expr {
            EntryExpr::MapEntry(m) => [&mut m.key, &mut m.value].into_iter().for_each(rewrite),
            EntryExpr::StructField(s) => rewrite(&mut s.value),
        }),
        Expr::Select(select) => rewrite(&mut select.operand),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}
