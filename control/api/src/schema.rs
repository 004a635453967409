//! What the machinery knows about the shape of objects. One `Schema` type serves
//! built-in kinds (decoded from the tables when first asked for) and custom
//! resources (made from their structural schema), so that pruning, validation,
//! patches, apply, defaulting and codecs are the same code for both.

use crate::blob::{self, Reader};
use serde_json::Value;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock, OnceLock};

/// A string from the tables or from a custom resource.
pub type Str = Cow<'static, str>;

/// What a node holds. The numbers are those of `build.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ty {
    /// Anything at all.
    Any = 0,
    /// Fields by name (or a map, when `items` is set and there are no fields).
    Object = 1,
    Boolean = 2,
    String = 3,
    Int32 = 4,
    Int64 = 5,
    Number = 6,
    IntOrString = 7,
    Quantity = 8,
    Time = 9,
    MicroTime = 10,
    /// Base64 text in JSON.
    Bytes = 11,
    /// An embedded object of any kind.
    RawExtension = 12,
    FieldsV1 = 13,
    /// Any JSON value; in protobuf carried as JSON text.
    Json = 14,
    Array = 15,
    /// A JSONSchemaProps or a list of them, or a boolean, or a list of names.
    PropsOrArray = 16,
    PropsOrBool = 17,
    PropsOrStrings = 18,
}

impl Ty {
    /// What definitions call it; empty for what they have no name for.
    pub fn name(self) -> &'static str {
        match self {
            Ty::Object => "object",
            Ty::Array => "array",
            Ty::String => "string",
            Ty::Boolean => "boolean",
            Ty::Int32 | Ty::Int64 => "integer",
            Ty::Number => "number",
            _ => "",
        }
    }

    fn from_byte(b: u8) -> Ty {
        match b {
            1 => Ty::Object,
            2 => Ty::Boolean,
            3 => Ty::String,
            4 => Ty::Int32,
            5 => Ty::Int64,
            6 => Ty::Number,
            7 => Ty::IntOrString,
            8 => Ty::Quantity,
            9 => Ty::Time,
            10 => Ty::MicroTime,
            11 => Ty::Bytes,
            12 => Ty::RawExtension,
            13 => Ty::FieldsV1,
            14 => Ty::Json,
            15 => Ty::Array,
            16 => Ty::PropsOrArray,
            17 => Ty::PropsOrBool,
            18 => Ty::PropsOrStrings,
            _ => Ty::Any,
        }
    }
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ListType {
    /// Not said; treated as atomic.
    #[default]
    Unset,
    Atomic,
    Set,
    Map,
}

/// One node of a schema.
#[derive(Debug)]
pub struct Schema {
    /// Name in OpenAPI (`io.k8s.api.core.v1.Pod`); empty for inline nodes.
    pub name: Str,
    pub ty: Ty,
    /// Fields sorted by name.
    pub fields: Vec<Field>,
    /// Items of an array, values of a map.
    pub items: Option<Ref>,
    pub list: ListType,
    /// Keys of `ListType::Map`.
    pub keys: Vec<Str>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// Number of the description in the tables.
    help: u32,
    /// What only custom resources have.
    pub extra: Option<Box<Extra>>,
}

/// What only the schemas of custom resources have.
#[derive(Debug, Default, Clone)]
pub struct Extra {
    pub nullable: bool,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub default: Option<Value>,
    /// The JSONSchemaProps node itself without its children, for value validation.
    pub rules: Option<Value>,
    /// `x-kubernetes-validations`.
    pub validations: Vec<crate::crd::Rule>,
    /// Whether this node or one below it has some.
    pub rules_below: bool,
}

/// A field of an object.
#[derive(Debug)]
pub struct Field {
    pub name: Str,
    pub required: bool,
    pub patch_merge: bool,
    pub retain_keys: bool,
    pub merge_key: Option<&'static str>,
    /// Treat the field's object as one value in server-side apply.
    pub atomic: bool,
    /// Zero is a value of its own, different from not set.
    pub optional: bool,
    /// Protobuf number, 0 where there is none.
    pub number: u32,
    /// Numbers of the embedded messages on the way to `number`.
    pub path: Vec<u32>,
    help: u32,
    schema: Ref,
}

/// A node that may live elsewhere.
#[derive(Debug, Clone)]
pub enum Ref {
    /// A named type of the tables.
    Type(u16),
    /// A scalar.
    Leaf(Ty),
    /// A node of its own.
    Own(Arc<Schema>),
}

impl Ref {
    /// The node.
    pub fn get(&self) -> &Schema {
        match self {
            Ref::Type(i) => by_index(*i),
            Ref::Leaf(t) => &LEAVES[*t as usize],
            Ref::Own(s) => s,
        }
    }
}

impl Field {
    /// The node of the field's value.
    pub fn schema(&self) -> &Schema {
        self.schema.get()
    }

    /// What the field is for.
    pub fn description(&self) -> &'static str {
        blob::string(self.help)
    }

    /// How the field's node is referred to.
    pub(crate) fn reference(&self) -> &Ref {
        &self.schema
    }

    /// A field of a custom resource.
    pub fn custom(name: Str, schema: Ref, required: bool) -> Field {
        Field {
            name,
            required,
            patch_merge: false,
            retain_keys: false,
            merge_key: None,
            atomic: false,
            optional: false,
            number: 0,
            path: Vec::new(),
            help: 0,
            schema,
        }
    }
}

impl Schema {
    fn leaf(ty: Ty) -> Schema {
        Schema {
            name: Str::Borrowed(""),
            ty,
            fields: Vec::new(),
            items: None,
            list: ListType::Unset,
            keys: Vec::new(),
            atomic: false,
            help: 0,
            extra: None,
        }
    }

    /// What the type is for.
    pub fn description(&self) -> &'static str {
        blob::string(self.help)
    }

    /// An inline node of the given type.
    pub fn of(ty: Ty) -> Schema {
        Schema::leaf(ty)
    }

    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().map(|i| &self.fields[i])
    }

    /// The node below `name`: a field's, or the value's of a map.
    pub fn child(&self, name: &str) -> Option<&Schema> {
        match self.field(name) {
            Some(f) => Some(f.schema()),
            None if self.ty == Ty::Object => self.items.as_ref().map(Ref::get),
            None => None,
        }
    }

    /// The node of an array's items.
    pub fn item(&self) -> Option<&Schema> {
        if self.ty == Ty::Array { self.items.as_ref().map(Ref::get) } else { None }
    }

    /// Whether this is a map (free keys, values of one type).
    pub fn is_map(&self) -> bool {
        self.ty == Ty::Object && self.fields.is_empty() && self.items.is_some()
    }

    /// Whether fields that the schema does not name are kept.
    pub fn keeps_unknown(&self) -> bool {
        match self.ty {
            Ty::Any
            | Ty::RawExtension
            | Ty::FieldsV1
            | Ty::Json
            | Ty::PropsOrArray
            | Ty::PropsOrBool
            | Ty::PropsOrStrings => true,
            Ty::Object => {
                (self.fields.is_empty() && self.items.is_none() && self.extra.is_none() && self.name.is_empty())
                    || self.extra.as_ref().is_some_and(|e| e.preserve_unknown)
            }
            _ => false,
        }
    }

    /// Walks field names (`*` steps into items).
    pub fn at(&self, path: &[&str]) -> Option<&Schema> {
        let mut s = self;
        for p in path {
            s = if *p == "*" { s.items.as_ref()?.get() } else { s.child(p)? };
        }
        Some(s)
    }
}

static LEAVES: LazyLock<Vec<Schema>> = LazyLock::new(|| (0..19).map(|b| Schema::leaf(Ty::from_byte(b))).collect());

static TYPES: LazyLock<Vec<OnceLock<Schema>>> =
    LazyLock::new(|| (0..blob::type_count()).map(|_| OnceLock::new()).collect());

/// The type with this number in the tables.
pub fn by_index(index: u16) -> &'static Schema {
    match TYPES.get(index as usize) {
        Some(cell) => cell.get_or_init(|| decode(index)),
        None => &LEAVES[0],
    }
}

/// The type with this OpenAPI name.
pub fn by_name(name: &str) -> Option<&'static Schema> {
    index_of(name).map(by_index)
}

/// The number of the type with this OpenAPI name.
pub fn index_of(name: &str) -> Option<u16> {
    let (mut lo, mut hi) = (0usize, blob::type_count());
    while lo < hi {
        let mid = (lo + hi) / 2;
        let at = Reader::of_type(mid as u16).str();
        match at.cmp(name) {
            std::cmp::Ordering::Equal => return Some(mid as u16),
            std::cmp::Ordering::Less => lo = mid + 1,
            std::cmp::Ordering::Greater => hi = mid,
        }
    }
    None
}

/// The schema of ObjectMeta.
pub fn object_meta() -> &'static Schema {
    static META: LazyLock<u16> =
        LazyLock::new(|| index_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap_or(u16::MAX));
    by_index(*META)
}

/// The schema of JSONSchemaProps.
pub fn schema_props() -> &'static Schema {
    static PROPS: LazyLock<u16> = LazyLock::new(|| {
        index_of("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap_or(u16::MAX)
    });
    by_index(*PROPS)
}

fn decode(index: u16) -> Schema {
    let mut r = Reader::of_type(index);
    let mut s = Schema::leaf(Ty::Object);
    s.name = Str::Borrowed(r.str());
    s.help = r.num();
    s.atomic = r.byte() == 1;
    let n = r.num();
    s.fields = (0..n).map(|_| decode_field(&mut r)).collect();
    s.fields.sort_by(|a, b| a.name.cmp(&b.name));
    s
}

fn decode_field(r: &mut Reader) -> Field {
    let name = Str::Borrowed(r.str());
    let help = r.num();
    let flags = r.byte();
    let merge_key = (flags & 8 != 0).then(|| r.str());
    let number = r.num();
    let path = (0..r.num()).map(|_| r.num()).collect();
    Field {
        name,
        required: flags & 1 != 0,
        patch_merge: flags & 2 != 0,
        retain_keys: flags & 4 != 0,
        atomic: flags & 16 != 0,
        optional: flags & 32 != 0,
        merge_key,
        number,
        path,
        help,
        schema: decode_node(r),
    }
}

fn decode_node(r: &mut Reader) -> Ref {
    match r.byte() {
        0 => Ref::Type(r.num() as u16),
        1 => {
            let mut s = Schema::leaf(Ty::Array);
            s.list = match r.byte() {
                1 => ListType::Atomic,
                2 => ListType::Set,
                3 => ListType::Map,
                _ => ListType::Unset,
            };
            s.keys = r.strs().into_iter().map(Str::Borrowed).collect();
            s.items = Some(decode_node(r));
            Ref::Own(Arc::new(s))
        }
        2 => {
            let mut s = Schema::leaf(Ty::Object);
            s.atomic = r.byte() == 1;
            s.items = Some(decode_node(r));
            Ref::Own(Arc::new(s))
        }
        _ => Ref::Leaf(Ty::from_byte(r.byte())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_types_and_fields() {
        let pod = by_name("io.k8s.api.core.v1.Pod").unwrap();
        let containers = pod.at(&["spec", "containers"]).unwrap();
        assert_eq!(containers.list, ListType::Map);
        assert_eq!(containers.keys, ["name"]);
        let limits = pod.at(&["spec", "containers", "*", "resources", "limits"]).unwrap();
        assert!(limits.is_map());
        assert_eq!(limits.child("cpu").unwrap().ty, Ty::Quantity);
        assert_eq!(pod.at(&["metadata", "creationTimestamp"]).unwrap().ty, Ty::Time);
        let spec = pod.child("spec").unwrap();
        assert_eq!(spec.field("containers").unwrap().merge_key, Some("name"));
        assert!(by_name("io.k8s.api.core.v1.Nothing").is_none());
    }

    #[test]
    fn every_type_decodes() {
        for i in 0..blob::type_count() {
            let s = by_index(i as u16);
            assert!(!s.name.is_empty());
            assert_eq!(index_of(&s.name), Some(i as u16));
        }
    }
}
