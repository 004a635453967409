//! What can be known of an expression before it runs: names that there are not, fields that the schema does not have,
//! operators that cannot apply.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};

use super::cost::for_children;
use super::val;
use crate::schema::{Schema, Ty};

/// Functions of Kubernetes' libraries that are not here: their rules are not enforced.
const LACKING: &[&str] = &[
    "isSemver",
    "semver",
    "major",
    "minor",
    "patch",
    "named",
    "validate",
    "transformMap",
    "transformList",
    "transformMapEntry",
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
    "bind",
    "slice",
    "flatten",
    "distinct",
    "sort",
    "sortBy",
    "reverse",
    "first",
    "last",
    "range",
    "jsonpatch.escapeKey",
];

/// Macros that may have two variables, which are not here.
const TWO_VARIABLES: &[&str] = &["all", "exists", "existsOne", "exists_one"];

/// Functions that are here, beside operators.
const KNOWN: &[&str] = &[
    // The language's.
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "bytes",
    "bool",
    "dyn",
    "type",
    "duration",
    "timestamp",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "of",
    "none",
    "ofNonZeroValue",
    "hasValue",
    "value",
    "orValue",
    "or",
    "optMap",
    "optFlatMap",
    // Texts.
    "charAt",
    "indexOf",
    "lastIndexOf",
    "join",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "substring",
    "trim",
    "format",
    "quote",
    "find",
    "findAll",
    // Lists and sets.
    "isSorted",
    "sum",
    "min",
    "max",
    "equivalent",
    "intersects",
    // Kubernetes' own types.
    "isURL",
    "url",
    "getScheme",
    "getHost",
    "getHostname",
    "getPort",
    "getEscapedPath",
    "getQuery",
    "isQuantity",
    "quantity",
    "isInteger",
    "asInteger",
    "asApproximateFloat",
    "sign",
    "add",
    "sub",
    "isLessThan",
    "isGreaterThan",
    "compareTo",
    "isIP",
    "ip",
    "isCanonical",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "isCIDR",
    "cidr",
    "containsIP",
    "containsCIDR",
    "masked",
    "prefixLength",
    // Numbers.
    "greatest",
    "least",
    "ceil",
    "floor",
    "round",
    "trunc",
    "isInf",
    "isNaN",
    "isFinite",
    "abs",
    "bitAnd",
    "bitOr",
    "bitXor",
    "bitNot",
    "bitShiftLeft",
    "bitShiftRight",
    "sqrt",
];

/// Names of types and of what functions stand under.
const NAMES: &[&str] = &[
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "dyn",
    "google",
    "optional",
    "optional_type",
    "math",
    "sets",
    "strings",
    "ip",
    "cidr",
    "net",
    "kubernetes",
    "format",
    "base64",
    "lists",
    "cel",
    "jsonpatch",
];

/// What an expression gives.
#[derive(Clone, Copy, Debug)]
enum Type<'a> {
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    List,
    Map,
    Null,
    Node(&'a Schema, bool),
    Any,
}

impl Type<'_> {
    /// The name of a type that is certain.
    fn name(self) -> Option<&'static str> {
        Some(match self {
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::Text => "string",
            Type::Bytes => "bytes",
            Type::List => "list",
            Type::Map => "map",
            Type::Node(schema, _) => {
                let formatted = schema.extra.as_ref().and_then(|e| e.rules.as_ref()?.get("format")).is_some();
                let open = schema.extra.as_ref().is_some_and(|e| e.nullable);
                match schema.ty {
                    _ if open => return None,
                    Ty::Boolean => "bool",
                    Ty::Int32 | Ty::Int64 => "int",
                    Ty::Number => "double",
                    Ty::String if !formatted => "string",
                    Ty::Array => "list",
                    Ty::Object if schema.is_map() => "map",
                    Ty::Object => "object",
                    _ => return None,
                }
            }
            Type::Null | Type::Any => return None,
        })
    }
}

struct Checker<'a> {
    source: &'a SourceInfo,
    vars: Vec<(String, Type<'a>)>,
    errors: Vec<String>,
}

/// A function that upstream has and this server has not, if the expression calls one.
pub(super) fn lacking(e: &IdedExpr) -> Option<String> {
    if let Expr::Call(call) = &e.expr
        && is_lacking(call)
    {
        return Some(call.func_name.clone());
    }
    let mut found = None;
    for_children(e, &mut |child| found = found.take().or_else(|| lacking(child)));
    found
}

fn is_lacking(call: &CallExpr) -> bool {
    let name = call.func_name.as_str();
    LACKING.contains(&name) || call.target.is_some() && TWO_VARIABLES.contains(&name)
}

/// Looks an expression through: its errors in upstream's form, and the name of the type that it certainly gives.
pub(super) fn check(
    e: &IdedExpr,
    source: &SourceInfo,
    schema: &Schema,
    root: bool,
    optional_old: bool,
) -> (Vec<String>, Option<&'static str>) {
    let node = Type::Node(schema, root);
    let old = if optional_old { Type::Any } else { node };
    let mut checker =
        Checker { source, vars: vec![("self".into(), node), ("oldSelf".into(), old)], errors: Vec::new() };
    let given = checker.infer(e).name();
    (checker.errors, given)
}

impl<'a> Checker<'a> {
    fn error(&mut self, id: u64, what: &str) {
        let (start, _) = self.source.offset_for(id).unwrap_or((0, 0));
        let before: String = self.source.source.chars().take(start as usize).collect();
        let line = before.matches('\n').count();
        let column = before.chars().rev().take_while(|c| *c != '\n').count();
        let text = self.source.source.lines().nth(line).unwrap_or("");
        self.errors.push(error(line + 1, column + 1, what, text));
    }

    fn infer(&mut self, e: &IdedExpr) -> Type<'a> {
        match &e.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::Text,
                LiteralValue::UInt(_) => Type::Uint,
            },
            Expr::Ident(name) => self.ident(e.id, name),
            Expr::Select(select) => {
                let operand = self.infer(&select.operand);
                let field = self.select(e.id, operand, &select.field);
                if select.test { Type::Bool } else { field }
            }
            Expr::Call(call) => self.call(e.id, call),
            Expr::Comprehension(c) => {
                let range = self.infer(&c.iter_range);
                let accu = self.infer(&c.accu_init);
                let item = match range {
                    Type::Node(s, _) if s.ty == Ty::Array => s.item().map_or(Type::Any, |s| Type::Node(s, false)),
                    Type::Node(s, _) if s.ty == Ty::Object => Type::Text,
                    _ => Type::Any,
                };
                let depth = self.vars.len();
                self.vars.push((c.iter_var.clone(), item));
                self.vars.extend(c.iter_var2.iter().map(|v| (v.clone(), Type::Any)));
                self.vars.push((c.accu_var.clone(), accu));
                self.infer(&c.loop_cond);
                self.infer(&c.loop_step);
                let result = self.infer(&c.result);
                self.vars.truncate(depth);
                // What an optional's macros bind changes its type on the way.
                if c.accu_var == "@result" { result } else { Type::Any }
            }
            Expr::List(_) => {
                for_children(e, &mut |child| {
                    self.infer(child);
                });
                Type::List
            }
            Expr::Map(_) => {
                for_children(e, &mut |child| {
                    self.infer(child);
                });
                Type::Map
            }
            Expr::Struct(_) | Expr::Unspecified => Type::Any,
        }
    }

    fn ident(&mut self, id: u64, name: &str) -> Type<'a> {
        if let Some((_, found)) = self.vars.iter().rev().find(|(v, _)| v == name) {
            return *found;
        }
        if !name.starts_with(['@', '#', '.']) && !NAMES.contains(&name) {
            self.error(id, &format!("undeclared reference to '{name}' (in container '')"));
        }
        Type::Any
    }

    fn select(&mut self, id: u64, operand: Type<'a>, field: &str) -> Type<'a> {
        match operand {
            Type::Node(schema, root) if schema.ty == Ty::Object => {
                if val::is_resource(schema, root) {
                    match field {
                        "apiVersion" | "kind" => return Type::Text,
                        "metadata" => return Type::Any,
                        _ => {}
                    }
                }
                let found = schema.fields.iter().find(|f| val::escape(&f.name).as_deref() == Some(field));
                match (found, schema.items.as_ref()) {
                    (Some(found), _) => Type::Node(found.schema(), false),
                    (None, Some(item)) => Type::Node(item.get(), false),
                    (None, None) => {
                        self.error(id, &format!("undefined field '{field}'"));
                        Type::Any
                    }
                }
            }
            Type::Any | Type::Null | Type::Map => Type::Any,
            Type::Node(schema, _) if matches!(schema.ty, Ty::Any | Ty::IntOrString) => Type::Any,
            scalar => {
                if let Some(name) = scalar.name() {
                    self.error(id, &format!("type '{name}' does not support field selection"));
                }
                Type::Any
            }
        }
    }

    fn call(&mut self, id: u64, call: &CallExpr) -> Type<'a> {
        let name = call.func_name.as_str();
        if let Some(target) = &call.target {
            self.infer(target);
        }
        if name == operators::OPT_SELECT {
            if let Some(operand) = call.args.first() {
                self.infer(operand);
            }
            return Type::Any;
        }
        if is_lacking(call) {
            // Its variables are not known, so that no more can be said.
            return Type::Any;
        }
        let args: Vec<Type<'a>> = call.args.iter().map(|arg| self.infer(arg)).collect();
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_operator && !KNOWN.contains(&name) {
            self.error(id, &format!("undeclared reference to '{name}' (in container '')"));
            return Type::Any;
        }
        self.operands(id, name, &args);
        match name {
            operators::INDEX => match args.first() {
                Some(Type::Node(s, _)) if s.ty == Ty::Array => s.item().map_or(Type::Any, |s| Type::Node(s, false)),
                Some(Type::Node(s, _)) if s.is_map() => s.child("").map_or(Type::Any, |s| Type::Node(s, false)),
                _ => Type::Any,
            },
            operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO => {
                match args.first().and_then(|a| a.name()) {
                    Some("int") => Type::Int,
                    Some("double") => Type::Double,
                    Some("string") => Type::Text,
                    Some("list") => Type::List,
                    _ => Type::Any,
                }
            }
            operators::CONDITIONAL => match (args[1].name(), args[2].name()) {
                (Some(a), Some(b)) if a == b => args[1],
                _ => Type::Any,
            },
            operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
            | operators::IN
            | operators::NOT_STRICTLY_FALSE
            | "contains"
            | "startsWith"
            | "endsWith"
            | "matches"
            | "hasValue"
            | "isSorted"
            | "isURL"
            | "isQuantity"
            | "isIP"
            | "isCIDR"
            | "isInteger"
            | "equivalent"
            | "intersects" => Type::Bool,
            "size" | "int" => Type::Int,
            "double" => Type::Double,
            "string" | "format" | "join" | "lowerAscii" | "upperAscii" | "replace" | "substring" | "trim" | "find"
            | "charAt" => Type::Text,
            "split" | "findAll" => Type::List,
            _ => Type::Any,
        }
    }

    /// Operators on types that are certain, and that they cannot have.
    fn operands(&mut self, id: u64, name: &str, args: &[Type<'a>]) {
        let names: Option<Vec<&str>> = args.iter().map(|a| a.name()).collect();
        let known = |wanted: &str| args.iter().all(|a| a.name().is_none_or(|n| n == wanted));
        let fits = match name {
            operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT => known("bool"),
            operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS => match names.as_deref() {
                Some([a, b]) => a == b || class(a) == class(b),
                _ => true,
            },
            _ => true,
        };
        if !fits {
            let names: Vec<&str> = args.iter().map(|a| a.name().unwrap_or("dyn")).collect();
            let what = format!("found no matching overload for '{name}' applied to '({})'", names.join(", "));
            self.error(id, &what);
        }
    }
}

/// Types of one class can be compared.
fn class(name: &str) -> u8 {
    match name {
        "int" | "uint" | "double" => 0,
        "string" => 1,
        "bool" => 2,
        "list" => 3,
        "map" | "object" => 4,
        _ => 5,
    }
}

/// An error as upstream's compiler writes it; line and column count from 1.
pub(super) fn error(line: usize, column: usize, what: &str, text: &str) -> String {
    let dots = ".".repeat(column.saturating_sub(1));
    format!("ERROR: <input>:{line}:{column}: {what}\n | {text}\n | {dots}^")
}
