"""Which names a notebook's cells bind and which they take from other cells, read from their source."""

import ast
import builtins
import json
import random

KNOWN = {*dir(builtins), "display"}  # IPython's own


class _Names(ast.NodeVisitor):
    """Names bound at the top of a cell, and those read before the cell has bound them itself."""

    def __init__(self):
        self.bound, self.free, self.inner = set(), set(), []

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store):
            (self.inner[-1] if self.inner else self.bound).add(node.id)
        elif not any(node.id in names for names in (self.bound, KNOWN, *self.inner)):
            self.free.add(node.id)

    def visit_alias(self, node):
        self.bound.add((node.asname or node.name).split(".")[0])

    def visit_Assign(self, node):
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_AugAssign(self, node):
        if isinstance(node.target, ast.Name) and node.target.id not in self.bound:
            self.free.add(node.target.id)
        self.generic_visit(node)

    def visit_NamedExpr(self, node):
        self.visit(node.value)
        self.bound.add(node.target.id)

    def visit_For(self, node):
        for part in (node.iter, node.target, *node.body, *node.orelse):
            self.visit(part)

    def visit_Lambda(self, node):
        self.inner.append({argument.arg for argument in node.args.args})
        self.visit(node.body)
        self.inner.pop()

    def _comprehension(self, node):
        self.visit(node.generators[0].iter)
        self.inner.append(set())
        for i, part in enumerate(node.generators):
            for inner in ((part.iter,) if i else ()) + (part.target, *part.ifs):
                self.visit(inner)
        for field in ("key", "value", "elt"):
            if hasattr(node, field):
                self.visit(getattr(node, field))
        self.inner.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def names(source):
    """Names that a cell binds, and those that it takes from other cells."""
    found = _Names()
    found.visit(ast.parse(source))
    return found.bound, found.free


def code_cells(path):
    """Sources of a notebook's code cells, by cell id, in order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}


def ambiguous(cells):
    """Names that one cell takes from another and that several bind: what they mean would depend on who ran last."""
    found = {key: names(source) for key, source in cells.items()}
    taken = set().union(*(free for _, free in found.values()))
    binders = {name: [key for key, (bound, _) in found.items() if name in bound] for name in taken}
    return {name: keys for name, keys in binders.items() if len(keys) > 1}


def needed(cells, wanted):
    """Ids of the cells that a cell needs, itself the last, in the notebook's order."""
    found = {key: names(source) for key, source in cells.items()}
    keep, rest = set(), [wanted]
    while rest:
        key = rest.pop()
        if key not in keep:
            keep.add(key)
            rest += [other for other, (bound, _) in found.items() if bound & found[key][1]]
    return [key for key in cells if key in keep]


def shuffled(cells, first, seed):
    """Ids of all cells, a drawn order: what cell `first` needs and itself, then any cell after those that it needs."""
    draw, order = random.Random(seed), needed(cells, first)
    before = {key: {*needed(cells, key)} - {key} for key in cells}
    while len(order) < len(cells):
        order.append(draw.choice([key for key in cells if key not in order and before[key] <= {*order}]))
    return order
