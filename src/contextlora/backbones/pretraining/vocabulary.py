"""Words of the bundled backbone: a word-level vocabulary, lower case, numbers 0 to 99 as single words."""

from contextlora.backbones.pretraining import wordings
from contextlora.tasks.renderers import COLOURS, COLUMNS, OBJECTS, PATTERNS, ROWS, WEATHERS

PAD, UNKNOWN, END, IMAGE = "<pad>", "<unk>", "<end>", "<image>"
NUMBERS = tuple(str(number) for number in range(100))
LETTERS = tuple("abcdefgh")
_GLUE = """
. , : ? given options answer yes no true or and than over under above below left right leftmost rightmost highest
lowest larger smaller largest smallest more less least most camera sound lane image levels level rules rule gives
classes class lookup repeat same as one does equal to by it this that all not only first last up down telemetry sensor
sensors choose word must you should i we do next best can be will has have was when where who why now question task
ahead behind near far what which is are the of at in on there thing things column row cell place name tell say how
many number find colour pattern weather see seen show shown reading value read then if with for kind count total here
sky any between from
""".split()
# Nouns and names of sensors, classes and actions for which the base has no meaning of its own: any can be a key, a
# value, a class or an option in the generic skills, so that a task set can use them for its own concepts.
_LEXICON = """
hazard grip manoeuvre route fragile massive agile fixed slick damp fair dry brake yield follow pass main bypass
bridge tunnel
vulnerable heavy light static moving slow fast stop wait turn merge overtake keep park exit north south east west
risk safe danger alert normal warning critical severe minor major mild
speed gap distance limit traffic signal road street crossing junction ring coast
temperature humidity wind smoke gas water power noise crowd energy fire flood leak crash fight theft medical rescue
ambulance police engine team drone patrol hospital station school market harbour airport centre suburb zone district
dispatch evacuate close open reroute inform monitor ignore escalate priority urgent routine event cause
empty sparse busy packed calm rough quiet loud still hot warm cool cold wet bright dim dark
pressure vibration load voltage current flow torque rotation oil bearing gear pump motor valve shaft belt fan rotor
seal
wear crack imbalance looseness misalignment cavitation fault healthy worn broken condition state machine
replace inspect lubricate align tighten clean repair run shutdown schedule maintenance action stage early late end
tone band low mid high tiny small medium large huge
apple river stone cloud garden window silver golden paper music summer winter spring autumn morning evening
forest island mountain valley desert ocean lake field farm village castle tower palace temple bread sugar honey salt
pepper coffee butter cheese orange lemon cherry grape melon olive carrot onion potato tomato chair table lamp mirror
carpet basket bottle hammer needle ladder bucket pencil letter story poem song dance game puzzle riddle secret
promise
winner leader keeper maker painter doctor teacher farmer sailor pilot singer writer hunter baker tailor
tiger eagle wolf horse sheep rabbit turtle spider whale shark falcon raven beaver otter badger
alpha beta gamma delta omega sigma kappa lambda
""".split()

# A word's place is its id: in another order the skill test would misread checkpoints built before.
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *(PAD, UNKNOWN, END, IMAGE),
            *NUMBERS,
            *_GLUE,
            *wordings.GLUE,
            *LETTERS,
            *OBJECTS,
            *COLOURS,
            *WEATHERS,
            *PATTERNS,
            *COLUMNS,
            *ROWS,
            *sorted(_LEXICON),
        )
    )
)
# Words that can stand for anything in the generic skills.
FREE_WORDS: tuple[str, ...] = tuple(sorted({*_LEXICON, *OBJECTS, *COLOURS, *WEATHERS, *PATTERNS}))
