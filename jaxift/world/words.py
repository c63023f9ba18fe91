"""The words of the synthetic world: domains, subjects, relations, their closed value sets, and made-up names."""

import numpy as np

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
LETTERS = ("A", "B", "C", "D")
STUDY_DOMAINS = ("medicine", "history", "engineering", "jurisprudence")

SUBJECTS = {
    "medicine": ("pathology", "pharmacology", "surgery", "virology"),
    "history": ("antiquity", "renaissance", "revolutions", "archaeology"),
    "engineering": ("mechanics", "electronics", "hydraulics", "aeronautics"),
    "jurisprudence": ("contracts", "torts", "property", "maritime"),
    "geography": ("islands", "mountains", "deserts", "coasts"),
}

_VALUES = {
    "medicine": {
        "remedy": "quinine aspirin iodine ether senna camphor arnica zinc "
        "sulphur penicillin insulin digitalis morphine cortisone ginger valerian",
        "organ": "heart liver kidney lung spleen stomach skin brain "
        "retina pancreas thyroid bladder tongue marrow larynx colon",
        "symptom": "fever cough rash tremor nausea vertigo fatigue cramp "
        "chills jaundice thirst insomnia numbness itching sneezing swelling",
    },
    "history": {
        "ruler": "Augustus Cyrus Ashoka Theodora Saladin Isabella Suleiman Akbar "
        "Victoria Bismarck Bolivar Catherine Hammurabi Pericles Charlemagne Nefertiti",
        "cause": "famine plague taxation succession trade religion drought conquest "
        "mutiny debt migration treason alliance embargo heresy slavery",
        "monument": "obelisk arch temple statue fortress aqueduct pyramid column "
        "cathedral mosque tower bridge tomb palace theatre lighthouse",
    },
    "engineering": {
        "material": "steel copper brass carbon titanium ceramic rubber nylon "
        "glass oak bronze lead nickel silicon teflon graphite",
        "inventor": "Watt Tesla Edison Diesel Bessemer Marconi Faraday Stephenson "
        "Brunel Otto Ampere Volta Parsons Whittle Archimedes Leonardo",
        "energy": "steam coal diesel wind solar tidal battery uranium "
        "hydrogen gas peat flywheel spring ethanol gravity muscle",
    },
    "jurisprudence": {
        "court": "chancery assize tribunal admiralty appellate probate magistrate supreme "
        "juvenile county federal consistory provost sheriff circuit bankruptcy",
        "penalty": "fine prison exile parole forfeiture censure restitution probation "
        "disbarment deportation pillory bond curfew seizure annulment injunction",
        "doctrine": "estoppel laches equity necessity consent novation negligence privity "
        "comity standing agency mistake duress escrow subrogation frustration",
    },
    "geography": {
        "climate": "tropical arid polar temperate alpine monsoon oceanic steppe "
        "tundra humid foggy windy mild continental subarctic equatorial",
        "river": "Nile Danube Rhine Volga Indus Mekong Congo Niger Orinoco Tagus Loire Elbe Ganges Tigris Amur Yukon",
        "export": "coffee cocoa cotton wool tin timber salt rice tea sugar wheat amber silk olives fish rum",
    },
}
VALUES = {
    domain: {relation: tuple(words.split()) for relation, words in relations.items()}
    for domain, relations in _VALUES.items()
}


def make_names(count: int, taken: set[str], rng: np.random.Generator) -> list[str]:
    """Draw `count` distinct made-up names of two or three syllables, none of them among the words `taken`."""
    onsets, vowels, codas = (
        [
            "b",
            "d",
            "f",
            "g",
            "k",
            "l",
            "m",
            "n",
            "p",
            "r",
            "s",
            "t",
            "v",
            "z",
            "br",
            "dr",
            "gr",
            "kl",
            "pl",
            "st",
            "tr",
        ],
        "aeiou",
        ["k", "l", "m", "n", "r", "s", "t", "x"],
    )
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = [rng.choice(onsets) + rng.choice(list(vowels)) for _ in range(rng.integers(2, 4))]
        name = ("".join(syllables) + rng.choice(codas)).capitalize()
        if name not in taken:
            names[name] = None
    return list(names)
