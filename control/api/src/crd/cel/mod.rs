//! CEL rules of custom resources, `x-kubernetes-validations`: compiled when a definition is written, and run over each
//! object that is.

mod cost;
mod library;
mod types;
mod val;

pub(crate) use val::RESERVED;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, Weak};

use ::cel::common::ast::IdedExpr;
use ::cel::common::types::{CelBool, CelOptional, CelString};
use ::cel::{Context, Env, ExecutionError};
use serde_json::{Value, json};

use crate::schema::{ListType, Schema};
use crate::status::{ErrorKind, FieldError};

/// Rules longer than this are refused, bytes.
const MAX_RULE: usize = 10 << 10;
/// Expressions that nest deeper are refused: others than [`on_deep_stack`] let go of them.
const MAX_DEPTH: usize = 300;
/// The longest message that an expression may make, bytes; upstream's limit.
const MAX_MESSAGE: usize = 5 << 10;
/// Expressions nest, and so does the interpreter: more than a worker's stack holds.
const STACK: usize = 256 << 20;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// One entry of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    rule: String,
    message: String,
    message_expression: String,
    reason: String,
    field_path: String,
    optional_old_self: bool,
    /// Compiled when first needed, and kept as long as some schema has the rule.
    programs: std::sync::OnceLock<(Arc<Compiled>, Option<Arc<Compiled>>)>,
}

/// An expression that is ready to run, or why it is not.
#[derive(Debug)]
struct Compiled {
    done: Result<Program, String>,
}

#[derive(Debug)]
struct Program {
    /// As written, for the look before it runs.
    checked: ::cel::Program,
    /// Made to count what it costs.
    expression: IdedExpr,
    steps: i64,
    uses_old: bool,
    /// A function that this server does not have.
    lacking: Option<String>,
}

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    let all = [::cel::extensions::strings, ::cel::extensions::math, library::extension, cost::extension];
    for extension in all {
        // The names are fixed, so that a clash shows in every test.
        if let Err(error) = env.add_extension(extension) {
            panic!("CEL's libraries do not fit each other: {error}");
        }
    }
    Arc::new(env)
});

impl Rule {
    /// Reads an entry.
    pub(super) fn read(v: &Value) -> Rule {
        let text = |name: &str| v[name].as_str().unwrap_or("").to_string();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: v["optionalOldSelf"] == true,
            programs: std::sync::OnceLock::new(),
        }
    }

    fn programs(&self) -> &(Arc<Compiled>, Option<Arc<Compiled>>) {
        self.programs.get_or_init(|| {
            let message = Some(self.message_expression.trim()).filter(|m| !m.is_empty());
            (compiled(&self.rule), message.map(compiled))
        })
    }

    /// How errors name the rule.
    fn name(&self) -> &str {
        if self.message.is_empty() { self.rule.trim() } else { self.message.trim() }
    }

    fn text(&self) -> String {
        if self.message.is_empty() { format!("failed rule: {}", self.name()) } else { self.name().to_string() }
    }

    /// The rule as errors of a definition show it.
    fn shown(&self) -> Value {
        json!({"Rule": self.rule, "Message": self.message, "MessageExpression": self.message_expression,
            "Reason": Some(&self.reason).filter(|r| !r.is_empty()), "FieldPath": self.field_path,
            "OptionalOldSelf": self.optional_old_self.then_some(true)})
    }
}

/// The expression, compiled once for all schemas that have it now.
fn compiled(text: &str) -> Arc<Compiled> {
    static KEPT: LazyLock<Mutex<HashMap<String, Weak<Compiled>>>> = LazyLock::new(Mutex::default);
    if let Some(known) = KEPT.lock().unwrap_or_else(|e| e.into_inner()).get(text).and_then(Weak::upgrade) {
        return known;
    }
    let new = Arc::new(Compiled { done: on_deep_stack(|| compile(text)).unwrap_or_else(Err) });
    let mut kept = KEPT.lock().unwrap_or_else(|e| e.into_inner());
    kept.retain(|_, program| program.strong_count() > 0);
    kept.insert(text.to_string(), Arc::downgrade(&new));
    new
}

fn compile(text: &str) -> Result<Program, String> {
    if text.len() > MAX_RULE {
        return Err(format!(
            "compilation failed: the expression has {} bytes; at most {MAX_RULE} are taken",
            text.len()
        ));
    }
    let checked = ENVIRONMENT.compile(text).map_err(|errors| {
        let each = errors.errors.iter().map(|e| {
            let (line, column) = (e.pos.0.max(1) as usize, e.pos.1.max(1) as usize);
            types::error(line, column, &e.msg, text.lines().nth(line - 1).unwrap_or(""))
        });
        format!("compilation failed: {}", each.collect::<Vec<_>>().join("\n"))
    })?;
    let deep = cost::depth(checked.expression());
    if deep > MAX_DEPTH {
        return Err(format!("compilation failed: the expression nests {deep} deep; at most {MAX_DEPTH} is taken"));
    }
    let mut expression = checked.expression().clone();
    let (steps, texts) = cost::steps(&expression);
    cost::rewrite(&mut expression);
    let uses_old = checked.references().has_variable("oldSelf");
    let lacking = types::lacking(checked.expression());
    Ok(Program { checked, expression, steps: steps + texts, uses_old, lacking })
}

/// What is wrong with the syntax of an expression that no schema belongs to. Longer ones than rules are let pass:
/// only rules have that limit.
pub(super) fn syntax_fault(text: &str) -> Option<String> {
    if text.len() > MAX_RULE {
        return None;
    }
    on_deep_stack(|| compile(text).err()).unwrap_or_else(Some)
}

/// Runs `work` where expressions may nest; a fault of the interpreter is an error too.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".into()).stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| format!("starting a thread for CEL: {e}"))?;
        thread.join().map_err(|_| "the CEL interpreter failed".to_string())
    })
}

/// What is wrong with the rules of a schema, and which of them are not enforced, because they call functions that
/// this server does not have.
pub(super) fn check(schema: &Value, at: &str) -> (Vec<FieldError>, Vec<String>) {
    let (mut errors, mut lacking) = (Vec::new(), Vec::new());
    let done = on_deep_stack(|| check_node(schema, at, true, None, &mut errors, &mut lacking));
    if let Err(error) = done {
        errors.push(FieldError::new(ErrorKind::Internal, at, Value::Null, error));
    }
    (errors, lacking)
}

fn check_node(
    raw: &Value,
    at: &str,
    root: bool,
    uncorrelatable: Option<&str>,
    errors: &mut Vec<FieldError>,
    lacking: &mut Vec<String>,
) {
    let branches = |key: &str| raw[key].as_array().map_or(&[][..], Vec::as_slice).iter().enumerate();
    // Those of `allOf` are about the same value, as `structural` has it.
    let all = branches("allOf").map(|(n, branch)| (branch, format!("{at}.allOf[{n}]")));
    let rules: Vec<(&Value, String)> = std::iter::once((raw, at.to_string()))
        .chain(all)
        .flat_map(|(node, at)| {
            let rules = node["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate();
            rules.map(move |(i, rule)| (rule, format!("{at}.x-kubernetes-validations[{i}]")))
        })
        .collect();
    if !rules.is_empty() {
        let schema = if root { super::structural::root(raw, false) } else { super::structural::schema_of(raw) };
        for (rule, at) in rules {
            check_rule(&Rule::read(rule), &schema, &at, root, uncorrelatable, errors, lacking);
        }
    }
    branches("allOf").for_each(|(n, branch)| idle_below(branch, &format!("{at}.allOf[{n}]"), lacking));
    for key in ["anyOf", "oneOf"] {
        branches(key).for_each(|(n, branch)| idle(branch, &format!("{at}.{key}[{n}]"), lacking));
    }
    idle(&raw["not"], &format!("{at}.not"), lacking);
    for (name, child) in raw["properties"].as_object().into_iter().flatten() {
        check_node(child, &format!("{at}.properties[{name}]"), false, uncorrelatable, errors, lacking);
    }
    if raw["additionalProperties"].is_object() {
        let here = format!("{at}.additionalProperties");
        check_node(&raw["additionalProperties"], &here, false, uncorrelatable, errors, lacking);
    }
    if raw["items"].is_object() {
        let here = format!("{at}.items");
        let known = raw["x-kubernetes-list-type"] == "map";
        let below = uncorrelatable.or_else(|| (!known).then_some(here.as_str()));
        check_node(&raw["items"], &here, false, below, errors, lacking);
    }
}

/// Names the rules of a part of a schema where none are run.
fn idle(raw: &Value, at: &str, lacking: &mut Vec<String>) {
    for i in 0..raw["x-kubernetes-validations"].as_array().map_or(0, Vec::len) {
        let place =
            "this server runs rules of properties, items and their allOf, but none below anyOf, oneOf, not and allOf";
        lacking.push(format!("{at}.x-kubernetes-validations[{i}] is not enforced: {place}"));
    }
    idle_below(raw, at, lacking);
}

fn idle_below(raw: &Value, at: &str, lacking: &mut Vec<String>) {
    for (name, child) in raw["properties"].as_object().into_iter().flatten() {
        idle(child, &format!("{at}.properties[{name}]"), lacking);
    }
    for key in ["items", "additionalProperties", "not"] {
        if raw[key].is_object() {
            idle(&raw[key], &format!("{at}.{key}"), lacking);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (n, branch) in raw[key].as_array().into_iter().flatten().enumerate() {
            idle(branch, &format!("{at}.{key}[{n}]"), lacking);
        }
    }
}

fn check_rule(
    rule: &Rule,
    schema: &Schema,
    at: &str,
    root: bool,
    uncorrelatable: Option<&str>,
    errors: &mut Vec<FieldError>,
    lacking: &mut Vec<String>,
) {
    let before = errors.len();
    let breaks = |text: &str| text.trim().contains(['\n', '\r']);
    let here = |field: &str| format!("{at}.{field}");
    if rule.rule.trim().is_empty() {
        errors.push(FieldError::required(here("rule"), "rule is not specified"));
    } else if !rule.message.is_empty() && rule.message.trim().is_empty() {
        let detail = "message must be non-empty if specified";
        errors.push(FieldError::invalid(here("message"), rule.message.as_str(), detail));
    } else if rule.message.len() > 2048 {
        let start: String = rule.message.chars().take(10).collect();
        let detail = "message must have a maximum length of 2048 characters";
        errors.push(FieldError::invalid(here("message"), format!("{start}..."), detail));
    } else if breaks(&rule.message) {
        let detail = "message must not contain line breaks";
        errors.push(FieldError::invalid(here("message"), rule.message.as_str(), detail));
    } else if breaks(&rule.rule) && rule.message.trim().is_empty() {
        errors.push(FieldError::required(here("message"), "message must be specified if rule contains line breaks"));
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        let detail = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(here("messageExpression"), detail));
    }
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
        errors.push(FieldError::not_supported(here("reason"), rule.reason.as_str(), &REASONS));
    }
    if !rule.field_path.is_empty() {
        let value = rule.field_path.as_str();
        if value.trim().is_empty() {
            let detail = "fieldPath must be non-empty if specified";
            errors.push(FieldError::invalid(here("fieldPath"), value, detail));
        } else if value.contains(['\n', '\r']) {
            errors.push(FieldError::invalid(here("fieldPath"), value, "fieldPath must not contain line breaks"));
        } else if let Err(why) = field_path(value, schema) {
            let detail = format!("fieldPath must be a valid path: {why}");
            errors.push(FieldError::invalid(here("fieldPath"), value, detail));
        }
    }
    if errors.len() > before {
        return;
    }
    let (program, message) = rule.programs();
    expression(rule, program, schema, root, &here("rule"), "bool", errors, lacking);
    if let Some(message) = message {
        expression(rule, message, schema, root, &here("messageExpression"), "string", errors, lacking);
    }
    let uses_old = program.done.as_ref().is_ok_and(|p| p.uses_old);
    if let (true, Some(within)) = (uses_old, uncorrelatable) {
        let detail = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
        errors.push(FieldError::invalid(here("rule"), rule.rule.as_str(), detail));
    }
    if rule.optional_old_self && !uses_old && errors.len() == before {
        let detail = "may not be set if oldSelf is not used in rule";
        errors.push(FieldError::invalid(here("optionalOldSelf"), true, detail));
    }
}

#[expect(clippy::too_many_arguments)]
fn expression(
    rule: &Rule,
    compiled: &Compiled,
    schema: &Schema,
    root: bool,
    at: &str,
    wanted: &str,
    errors: &mut Vec<FieldError>,
    lacking: &mut Vec<String>,
) {
    let of_message = wanted == "string";
    let mut bad = |detail: &str| {
        let detail = if of_message { format!("messageExpression {detail}") } else { detail.to_string() };
        errors.push(FieldError::invalid(at, rule.shown(), detail));
    };
    let program = match &compiled.done {
        Ok(program) => program,
        Err(why) => return bad(why),
    };
    let source = program.checked.source_info();
    let (found, given) = types::check(program.checked.expression(), source, schema, root, rule.optional_old_self);
    if !found.is_empty() {
        bad(&format!("compilation failed: {}", found.join("\n")));
    } else if given.is_some_and(|given| given != wanted) {
        bad(if of_message { "must evaluate to a string" } else { "cel expression must evaluate to a bool" });
    }
    if let Some(function) = &program.lacking {
        lacking.push(format!("{at} is not enforced: this server does not have the function {function}"));
    }
}

/// Whether a rule's `fieldPath` (`.a.b`, `['a']`) names a field of the schema; gives it as errors name fields.
fn field_path(path: &str, schema: &Schema) -> Result<String, String> {
    let (mut rest, mut at, mut out) = (path.trim(), schema, String::new());
    while !rest.is_empty() {
        let (name, tail) = if let Some(quoted) = rest.strip_prefix("['") {
            let end = quoted.find("']").ok_or("unexpected end of JSON path")?;
            (&quoted[..end], &quoted[end + 2..])
        } else if let Some(plain) = rest.strip_prefix('.') {
            plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
            return Err(format!("expected [ or . but got: {}", rest.get(..end).unwrap_or(rest)));
        };
        let map = at.is_map();
        at = at.child(name).ok_or("does not refer to a valid field")?;
        match (map, out.is_empty()) {
            (true, _) => out.push_str(&format!("[{name}]")),
            (false, true) => out.push_str(name),
            (false, false) => out.push_str(&format!(".{name}")),
        }
        rest = tail;
    }
    Ok(out)
}

/// Where errors of the whole object are.
const ROOT: &str = "<nil>";

/// Runs the rules of a schema over an object. Only for objects that the schema itself has nothing against.
pub(super) fn validate(new: &Value, old: Option<&Value>, schema: &Schema) -> Vec<FieldError> {
    let done = on_deep_stack(|| {
        let mut run =
            Run { left: cost::PER_OBJECT, longest: longest(new).max(old.map_or(0, longest)), errors: Vec::new() };
        run.node(new, old, schema, ROOT, true, old.is_some_and(|old| old == new));
        run.errors
    });
    done.unwrap_or_else(|why| vec![FieldError::new(ErrorKind::Internal, ROOT, Value::Null, why)])
}

/// Bytes of the longest text.
fn longest(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len(),
        Value::Array(items) => items.iter().map(longest).max().unwrap_or(0),
        Value::Object(map) => map.values().map(longest).max().unwrap_or(0),
        _ => 0,
    }
}

struct Run {
    left: i64,
    longest: usize,
    errors: Vec<FieldError>,
}

/// Whether rules are anywhere in the schema.
fn has_rules(schema: &Schema) -> bool {
    schema.extra.as_ref().is_some_and(|extra| extra.rules_below)
}

impl Run {
    /// `same`: the value is, or is in, one that has not changed.
    fn node(&mut self, new: &Value, old: Option<&Value>, schema: &Schema, at: &str, root: bool, same: bool) {
        if new.is_null() || !has_rules(schema) || self.left < 0 {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        if let Some(extra) = schema.extra.as_ref().filter(|e| !e.validations.is_empty()) {
            self.rules(new, old, schema, &extra.validations, at, root, same);
        }
        let below = |name: &str| if at == ROOT { name.to_string() } else { format!("{at}.{name}") };
        match new {
            Value::Object(map) => {
                for (name, value) in map {
                    let Some(child) = schema.child(name) else { continue };
                    // Also of maps that are applied as a whole, as upstream does.
                    let was = old.and_then(|old| old.get(name));
                    let same = same || was == Some(value);
                    let at = match schema.field(name) {
                        Some(_) => below(name),
                        None => format!("{at}[{name}]"),
                    };
                    self.node(value, was, child, &at, false, same);
                }
            }
            Value::Array(items) => {
                let Some(item) = schema.item() else { return };
                let before = old.map(|old| by_keys(old, schema)).unwrap_or_default();
                for (i, value) in items.iter().enumerate() {
                    let was = before.get(&keys(value, schema)).copied();
                    let same = same || was == Some(value);
                    self.node(value, was, item, &format!("{at}[{i}]"), false, same);
                }
            }
            _ => {}
        }
    }

    #[expect(clippy::too_many_arguments)]
    fn rules(
        &mut self,
        new: &Value,
        old: Option<&Value>,
        schema: &Schema,
        rules: &[Rule],
        at: &str,
        root: bool,
        same: bool,
    ) {
        let ty = schema.ty.name();
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.add_variable_as_val("self", val::of(new, Some(schema), root));
        // Made once for all rules, as they may be many, and only where it is looked at.
        let used = |optional: bool| {
            let mut some = rules.iter().filter(|rule| rule.optional_old_self == optional);
            some.any(|rule| rule.programs().0.done.as_ref().is_ok_and(|program| program.uses_old))
        };
        let was = || old.map(|old| val::of(old, Some(schema), root));
        let (mut plain, mut optional) = (context.new_inner_scope(), context.new_inner_scope());
        if used(false)
            && let Some(was) = was()
        {
            plain.add_variable_as_val("oldSelf", was);
        }
        if used(true) {
            optional.add_variable_as_val("oldSelf", Box::new(CelOptional::from(was())));
        }
        for rule in rules {
            let (program, message) = rule.programs();
            let program = match &program.done {
                Ok(program) => program,
                // Upstream has no program for it.
                Err(_) if rule.rule.trim().is_empty() => continue,
                // A definition from before rules were compiled, or from another compiler.
                Err(why) => {
                    self.errors.push(FieldError::invalid(at, ty, format!("rule compile error: {why}")));
                    continue;
                }
            };
            if program.lacking.is_some() || (program.uses_old && old.is_none() && !rule.optional_old_self) {
                continue;
            }
            if self.left <= 0 {
                self.errors.push(FieldError::invalid(at, ty, OUT_OF_BUDGET));
                self.left = -1;
                return;
            }
            let context = if rule.optional_old_self { &optional } else { &plain };
            match self.run(program, context, |v| v.downcast_ref::<CelBool>().map(|b| *b.inner())) {
                Ok(Some(true)) => {}
                Ok(_) => {
                    let text = message
                        .as_ref()
                        .and_then(|m| m.done.as_ref().ok())
                        .and_then(|m| self.message(m, context))
                        .unwrap_or_else(|| rule.text());
                    // What was so before is let through, unless the rule is about the change.
                    if program.uses_old || !same {
                        self.errors.push(failure(rule, schema, at, ty, text));
                    }
                }
                Err(Failed::Budget) => {
                    self.errors.push(FieldError::invalid(at, ty, OUT_OF_BUDGET));
                    self.left = -1;
                    return;
                }
                Err(Failed::Cost) => {
                    let detail = format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        cost::EXCEEDED,
                        rule.name()
                    );
                    self.errors.push(FieldError::invalid(at, ty, detail));
                    self.left = -1;
                    return;
                }
                Err(Failed::Evaluation(why)) => {
                    let detail = if why == NO_OVERLOAD {
                        format!(
                            "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                            rule.name()
                        )
                    } else {
                        format!("{why} evaluating rule: {}", rule.name())
                    };
                    self.errors.push(FieldError::invalid(at, ty, detail));
                }
            }
        }
    }

    fn run<T>(
        &mut self,
        program: &Program,
        context: &Context<'_, '_>,
        take: impl FnOnce(&dyn ::cel::common::value::Val) -> T,
    ) -> Result<T, Failed> {
        let units = self.left.min(cost::PER_CALL);
        cost::begin(units - program.steps, self.longest);
        let done = ::cel::Value::resolve_val(&program.expression, context).map(|v| take(v.as_ref()));
        let left = cost::left();
        self.left -= units - left.max(0);
        match done {
            _ if left < 0 && units < cost::PER_CALL => Err(Failed::Budget),
            _ if left < 0 => Err(Failed::Cost),
            Ok(value) => Ok(value),
            Err(error) => Err(Failed::Evaluation(describe(&error))),
        }
    }

    /// What a message expression gives, if it is a message.
    fn message(&mut self, program: &Program, context: &Context<'_, '_>) -> Option<String> {
        let text =
            self.run(program, context, |v| v.downcast_ref::<CelString<'_>>().map(|s| s.inner().trim().to_string()));
        text.ok().flatten().filter(|t| !t.is_empty() && t.len() <= MAX_MESSAGE && !t.contains('\n'))
    }
}

enum Failed {
    /// More than all rules of the object may cost.
    Budget,
    /// More than one rule may cost.
    Cost,
    Evaluation(String),
}

const NO_OVERLOAD: &str = "no such overload";

/// An error in upstream's words, where it has some.
fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::DivisionByZero(_) => "division by zero".into(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".into(),
        ExecutionError::Overflow(..) => "integer overflow".into(),
        ExecutionError::IndexOutOfBounds(::cel::Value::Int(i)) => format!("index out of bounds: {i}"),
        ExecutionError::NoSuchOverload(_)
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UnsupportedBinaryOperator(..) => NO_OVERLOAD.into(),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

fn failure(rule: &Rule, schema: &Schema, at: &str, ty: &str, text: String) -> FieldError {
    let below = field_path(&rule.field_path, schema).unwrap_or_default();
    let at = match (below.is_empty(), at) {
        (true, at) => at.to_string(),
        (false, ROOT) => below,
        (false, at) => format!("{at}.{below}"),
    };
    match rule.reason.as_str() {
        "FieldValueForbidden" => FieldError::forbidden(at, text),
        "FieldValueRequired" => FieldError::required(at, text),
        "FieldValueDuplicate" => FieldError::duplicate(at, ty),
        _ => FieldError::invalid(at, ty, text),
    }
}

/// The values of an item's keys.
fn keys<'v>(item: &'v Value, schema: &Schema) -> Vec<Option<&'v Value>> {
    schema.keys.iter().map(|key| item.get(key.as_ref())).collect()
}

/// The items of an old list by their keys; none where items of lists are not told apart.
fn by_keys<'o>(old: &'o Value, schema: &Schema) -> HashMap<Vec<Option<&'o Value>>, &'o Value> {
    let mut out = HashMap::new();
    for item in old.as_array().filter(|_| schema.list == ListType::Map).into_iter().flatten() {
        out.entry(keys(item, schema)).or_insert(item);
    }
    out
}

#[cfg(test)]
mod tests;
