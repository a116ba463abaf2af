"""From a network to an intermediate representation: lowering, typed nodes, fusion."""
