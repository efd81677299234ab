"""The words in which a method is stated: Clock, Term, Ratio, Phase, Schedule, Step, Method."""
