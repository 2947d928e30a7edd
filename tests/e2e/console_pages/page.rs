//! A page as a browser reads it: a tree of elements.

use html5ever::tendril::TendrilSink as _;
use html5ever::{ParseOpts, parse_document};
use markup5ever_rcdom::{Handle, NodeData, RcDom};
use reqwest::{Response, StatusCode};

const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) struct Page {
    pub(super) address: String,
    pub(super) status: StatusCode,
    pub(super) source: String,
    elements: Vec<Element>,
    /// All texts, with a space between those of two elements.
    pub(super) text: String,
}

/// An element, and how deep in the tree it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Element {
    depth: usize,
    name: String,
    attributes: Vec<(String, String)>,
}

impl Page {
    /// Reads an answer, and checks that it forbids whatever is not of the console itself.
    pub(super) async fn read(address: &str, answer: Response) -> Self {
        let status = answer.status();
        let policy = answer.headers().get("content-security-policy").cloned();
        assert_eq!(
            policy.as_ref().and_then(|policy| policy.to_str().ok()),
            Some(CSP),
            "{address}"
        );
        Self::parse(address, status, answer.text().await.expect("a body"))
    }

    /// A page, or a part of one.
    pub(super) fn parse(address: &str, status: StatusCode, source: String) -> Self {
        let dom = parse_document(RcDom::default(), ParseOpts::default()).one(source.as_str());
        let (mut elements, mut text) = (Vec::new(), String::new());
        collect(&dom.document, 0, &mut elements, &mut text);
        Self {
            address: address.to_owned(),
            status,
            source,
            elements,
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }

    /// Asserts that nothing in it runs, loads or leads to anything foreign.
    pub(super) fn assert_harmless(&self) {
        for element in &self.elements {
            let what = format!("{}: {element:?}", self.address);
            let is_ours = matches!(
                element.name.as_str(),
                "html"
                    | "head"
                    | "meta"
                    | "title"
                    | "link"
                    | "script"
                    | "body"
                    | "a"
                    | "header"
                    | "span"
                    | "nav"
                    | "ul"
                    | "ol"
                    | "li"
                    | "main"
                    | "h1"
                    | "h2"
                    | "h3"
                    | "div"
                    | "p"
                    | "form"
                    | "input"
                    | "button"
                    | "fieldset"
                    | "legend"
                    | "label"
                    | "select"
                    | "option"
                    | "details"
                    | "summary"
                    | "section"
                    | "table"
                    | "caption"
                    | "thead"
                    | "tbody"
                    | "tr"
                    | "th"
                    | "td"
                    | "dl"
                    | "dt"
                    | "dd"
                    | "code"
                    | "pre"
                    | "strong"
                    | "em"
                    | "br"
                    | "time"
                    | "small"
            );
            assert!(is_ours, "{what}");
            for (name, value) in &element.attributes {
                assert!(!name.starts_with("on") && name != "style" && name != "srcdoc", "{what}");
                if matches!(name.as_str(), "href" | "src" | "action" | "formaction") {
                    assert!(
                        value.starts_with('/') && !value.starts_with("//") || value.starts_with('#'),
                        "{what}"
                    );
                }
            }
            if element.name == "script" {
                let source = element.attributes.iter().find(|(name, _)| name == "src");
                assert!(source.is_some_and(|(_, value)| value.starts_with("/assets/")), "{what}");
            }
        }
        for unseen in ['\u{202E}', '\u{0}', '\u{1b}', '\u{200b}'] {
            assert!(
                !self.text.contains(unseen),
                "{}: U+{:04X}",
                self.address,
                u32::from(unseen)
            );
        }
    }

    /// Names of elements with the names of their attributes, in their order: what a record's contents must not change.
    pub(super) fn skeleton(&self) -> Vec<String> {
        let names = |element: &Element| {
            let attributes: Vec<&str> = element.attributes.iter().map(|(name, _)| name.as_str()).collect();
            format!("{} {} [{}]", element.depth, element.name, attributes.join(" "))
        };
        self.elements.iter().map(names).collect()
    }

    /// The values of an attribute of all elements with this name.
    pub(super) fn attributes(&self, element: &str, attribute: &str) -> Vec<&str> {
        let elements = self.elements.iter().filter(|known| known.name == element);
        let values = elements.filter_map(|known| known.attributes.iter().find(|(name, _)| name == attribute));
        values.map(|(_, value)| value.as_str()).collect()
    }

    /// The links to single records: the places of the records that the page lists.
    pub(super) fn places(&self) -> Vec<&str> {
        let links = self.attributes("a", "href");
        links
            .into_iter()
            .filter_map(|link| link.strip_prefix("/events/user%2Devents/"))
            .collect()
    }

    /// The value of the hidden field `csrf`, which the forms of somebody who has logged in have.
    pub(super) fn csrf(&self) -> &str {
        let inputs = self.elements.iter().filter(|element| element.name == "input");
        let value = |element: &'_ Element, name: &str| element.attributes.iter().position(|(known, _)| known == name);
        let field = inputs
            .into_iter()
            .find(|element| value(element, "name").is_some_and(|index| element.attributes[index].1 == "csrf"));
        let field = field.expect("a form with a csrf token");
        &field.attributes[value(field, "value").expect("a value")].1
    }
}

fn collect(node: &Handle, depth: usize, elements: &mut Vec<Element>, text: &mut String) {
    match &node.data {
        NodeData::Element { name, attrs, .. } => {
            let attributes = attrs.borrow();
            elements.push(Element {
                depth,
                name: name.local.to_string(),
                attributes: attributes
                    .iter()
                    .map(|known| (known.name.local.to_string(), known.value.to_string()))
                    .collect(),
            });
        }
        NodeData::Text { contents } => {
            text.push_str(&contents.borrow());
        }
        NodeData::Document
        | NodeData::Doctype { .. }
        | NodeData::Comment { .. }
        | NodeData::ProcessingInstruction { .. } => {}
    }
    for child in node.children.borrow().iter() {
        collect(child, depth + 1, elements, text);
    }
    text.push(' ');
}
