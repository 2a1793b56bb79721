"""The words on training pages, split so that pages for evaluation are of other words.

A word is on the eval side when `crc32(word) % 10 == 0`, on the train side otherwise; that holds
for the lists below and for words made up at random. Short function words inside sentences and
headings such as TOTAL are shared. Many words are made up on purpose: a reader that guesses
English cannot guess those.
"""

from __future__ import annotations

import functools
import string
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

GOODS = """
milk butter bread eggs cheese yogurt cream rice pasta flour sugar salt pepper oil vinegar honey jam
coffee tea cocoa juice water soda cola beer wine cider lemonade apples bananas oranges lemons limes
grapes pears plums peaches cherries berries melon mango kiwi papaya figs dates raisins almonds
walnuts peanuts cashews tomatoes potatoes onions garlic carrots cabbage lettuce spinach broccoli
cauliflower celery leeks peas beans lentils corn mushrooms cucumber peppers radish beets turnips
pumpkin squash zucchini avocado olives pickles ketchup mustard mayo salsa hummus tofu chicken beef
pork lamb turkey ham bacon sausage salmon tuna cod shrimp crab mussels soup noodles pizza burger
sandwich wrap bagel muffin scone donut waffle pancake croissant baguette cookies crackers chips
pretzels popcorn chocolate candy gum mints cake pie tart pudding sorbet cereal oats granola muesli
syrup spice basil oregano thyme parsley mint ginger cinnamon nutmeg vanilla paprika curry napkins
tissues soap shampoo lotion razors toothpaste floss sponge bleach detergent foil candles matches
batteries bulbs lamp cable charger adapter mouse keyboard headset phone tablet camera printer ink
paper pens pencils eraser ruler notebook folder stapler tape glue scissors envelope stamps cards
socks shirt jeans jacket scarf gloves hat cap belt boots shoes sandals slippers dress skirt blouse
sweater hoodie shorts towel blanket pillow sheets curtain rug basket bucket broom mop brush comb
mirror clock vase frame plate bowl cup mug glass fork knife spoon pan pot kettle toaster blender
grater whisk tray jar bottle flask hammer nails screws bolts drill saw pliers wrench ladder rope
chain lock hinge paint roller plaster tiles bricks cement seeds soil fertilizer hose rake shovel
tulips roses ferns cactus leash kibble litter birdseed aquarium puzzle dice kite marbles doll robot
"""
ADJECTIVES = """
fresh organic large small medium red green blue white black brown golden sweet sour spicy mild
salted smoked dried frozen sliced whole low-fat vegan classic extra light dark double soft crunchy
thick thin long short wide narrow heavy bright plain striped cotton wool leather wooden steel glass
paper plastic mini jumbo family single twin daily deluxe basic premium royal rustic country garden
mountain river ocean winter summer autumn spring warm cold hot cool quick slow quiet gentle strong
old new young round square flat curved clean ripe raw roasted grilled baked crispy creamy fluffy
silky hollow solid loose tight spare broken lost empty full early late lucky silver copper purple
orange yellow pink gray velvet northern southern eastern western local imported simple tiny giant
"""
SURNAMES = """
Smith Jones Taylor Brown Williams Wilson Johnson Davies Robinson Wright Thompson Evans Walker White
Roberts Green Hall Wood Jackson Clarke Harris Martin Cooper King Lee Baker Ward Turner Hill Scott
Moore Clark Allen Young Parker Cook Bell Murphy Bailey Kelly Cox Miller Gray Adams Watson Foster
Mitchell Simpson Hunt Palmer Webb Rogers Stone Black Mason Holmes Knight Butler Fisher Barnes Grant
Ellis Lloyd Fox Reid Ford Price Lane Wells Pearson Graham Fletcher Howard Kaur Singh Patel Khan
Nguyen Tran Kim Park Chen Wang Zhang Liu Garcia Lopez Perez Silva Costa Santos Rossi Bianchi
Mueller
Weber Fischer Schmidt Wagner Jansen Visser Larsen Hansen Nielsen Lindqvist Virtanen Novak Kowalski
Petrov Ivanov Okafor Mensah Diallo Abebe Haddad Yilmaz Demir Cohen Levi Tanaka Sato Suzuki Dubois
Laurent Moreau Bernard O'Brien O'Neill MacLeod Fitzgerald Whitaker Ashworth Pemberton Blackwood
"""
FIRST_NAMES = """
Anna Ben Carla David Emma Frank Grace Henry Ivy Jack Karen Leo Maria Noah Olivia Paul Quinn Rosa Sam
Tina Uma Victor Wendy Xavier Yara Zoe Alice Brian Chloe Daniel Eva Felix Gina Hugo Irene James Kate
Lucas Mia Nina Oscar Petra Ruth Simon Tom Ursula Vera Will Adam Beth Colin Diana Ella Fred George
Helen Ian Julia Kevin Laura Mark Nora Owen Peter Rachel Steve Tara Alan Bella Chris Dora Eric Fiona
Gary Hannah Isaac Jane Kurt Linda Max Nadia Otto Penny Ralph Sarah Theo Vince Amir Bao Chidi Dmitri
Elif Farid Goran Hiro Ines Jorge Kofi Lars Mei Nils Omar Priya Ravi Sven Tariq Usha Wei Yuki Zain
"""
TOWNS = """
Ashford Bristol Camden Dover Elmwood Fairview Georgetown Hampton Ipswich Jasper Kingston Lincoln
Madison Newport Oxford Portland Quincy Richmond Salem Trenton Union Vernon Windsor York Auburn
Bedford Clinton Denver Easton Franklin Greenville Hudson Jackson Lexington Milton Norwich Oakland
Preston Reading Stafford Tampa Utica Warwick Austin Boston Chester Dayton Exeter Fresno Glasgow
Halifax Irvine Juneau Keswick Leeds Manchester Nashville Orlando Perth Raleigh Seattle Toledo
Truro Wells Bath Cork Derby Durham Galway Luton Poole Ripon Stirling Swansea Dublin Toronto Sydney
Riverside Springfield Lakewood Brighton Milford Arlington Burlington Cleveland Oakdale Westbrook
"""
STREETS = """
Main High Park Oak Maple Cedar Elm Pine Walnut Chestnut Church Mill Station Market Bridge Castle
Queen Prince Duke Lake Hill River Spring Garden Orchard Meadow Forest Sunset Highland Victoria
Albert Washington Adams Jefferson Monroe Liberty College School North South East West Center Union
Willow Birch Ash Holly Laurel Magnolia Juniper Poplar Aspen Cherry Apple Peach Harbor Ocean Beach
Canal Dock Abbey Manor Grange Priory Chapel Temple Crown Mercer Baker Cooper Fleet Bond Regent
"""
SHOP_TYPES = """
Market Bakery Grocery Store Cafe Deli Books Hardware Pharmacy Flowers Diner Bistro Pizza Kitchen
Foods Supply Outlet Mart Express Corner Coffee Grill Garage Optics Shoes Toys Sports Electronics
Stationery Butchers Motors Tools Fabrics Records Cycles Pets Nursery Tavern Inn Brewery Dairy Farm
"""
NOUNS = """
door window table chair garden kitchen office meeting report letter package ticket train bus flight
key wallet bag umbrella bike car engine tire doctor dentist teacher neighbor plumber painter driver
cat dog bird horse rabbit parcel invoice contract passport form plan map list photo picture album
guitar piano concert movie book library museum park beach bridge tower station airport hotel room
floor roof wall stairs elevator fence gate path lawn tree leaf flower stone river lake island boat
sail anchor storm cloud rain snow wind sun moon star night morning evening weekend holiday party
dinner lunch breakfast recipe oven fridge sink drawer shelf cupboard box lid handle button switch
wire screen laptop password account bank budget receipt discount refund bill rent salary project
deadline draft chapter lesson homework exam grade class team coach match score goal race prize
medal crown castle forest valley desert village market bakery clinic medicine bandage vitamin
"""
VERBS = """
opened closed moved found lost fixed broke cleaned painted carried bought sold sent brought kept
washed checked signed copied printed read wrote called met saw heard watched followed passed crossed
reached left started stopped finished ordered cancelled booked packed lifted dropped threw caught
planted watered cut cooked served tasted shared hid showed measured weighed counted sorted folded
"""
SENTENCES = {
    "train": (
        "Call {first} at {phone} before {time}.",
        "Please buy {goods}, {goods} and {goods}.",
        "Meet me at the {noun} at {time}.",
        "Do not forget the {adj} {noun}!",
        "{first} {verb} the {noun} on {day}.",
        "The {adj} {noun} is in the {noun}.",
        "Dear {first}, thank you for the {noun}.",
        "The {noun} costs {price}, the {noun} {price}.",
        "Is the {noun} still {adj}?",
        "We need {num} {goods} by {day}.",
        "Room {num}, {first} {last}.",
        "{first} and {first} {verb} the {adj} {noun}.",
        "Back at {time}. {first}",
        "Train to {town} leaves at {time}.",
        "To do: {noun}, {noun}, {noun}.",
        "The code for the {noun} is {code}.",
        "My {noun} was {verb} in {town}.",
        "If the {noun} is {adj}, use the {noun}.",
        "Flight {code} to {town}, gate {num}.",
        "Ask Mr. {last} about the {noun} ({phone}).",
        "Closed on {day}; open again at {time}.",
        "Why has {first} {verb} my {goods}?",
        "{num} % off all {goods} until {day}!",
        "{word} {word} {word} {num} {word}.",
        "The {word} {verb} a {word} near {town}.",
        "Wi-Fi: {word} / {code}",
        "e-mail: {word}@{word}.com",
        "www.{word}.org/{word}",
    ),
    "eval": (
        "{first} will bring {num} {goods} to {town}.",
        "Reminder: {noun} at {time} on {day}, bring {goods}.",
        "Nobody has {verb} the {adj} {noun} yet.",
        "Send the {noun} to {first} {last}, {town}.",
        "Your {noun} no. {code} is {adj}.",
        "Parking: level {num}, near the {noun}.",
        "{day}: {word} and {word}; {time}.",
    ),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ONSETS, _VOWELS, _CODAS = (
    tuple(parts.split())
    for parts in (
        "b c d f g h j k l m n p r s t v w x y z bl br ch cl cr dr fl fr gl gr pl pr qu sh sl sm "
        "sn sp st str th tr tw wh",
        "a e i o u ai au ea ee ei ie io oa oo ou y",
        "b d f g k l m n p r s t x z ck ct ft ld lk ll lt mp nd ng nk nt rd rk rn rt sh sk st th",
    )
)
_MARKS = ".,:;!?-+*/=#%&@$()[]<>{}_'\"^~|\\`"


def on_side(word: str, split: str) -> bool:
    """Whether pages of `split` may use `word`; letter case and affixed marks do not matter."""
    return (zlib.crc32(word.lower().encode()) % 10 == 0) == (split == "eval")


def pick(rng: np.random.Generator, options: Sequence[Item]) -> Item:
    return options[int(rng.integers(len(options)))]


@functools.cache
def vocabulary(name: str, split: str) -> tuple[str, ...]:
    """The words of one list on one side: goods, adjectives, surnames, first_names, and so on."""
    words = {
        "goods": GOODS,
        "adjectives": ADJECTIVES,
        "surnames": SURNAMES,
        "first_names": FIRST_NAMES,
        "towns": TOWNS,
        "streets": STREETS,
        "shop_types": SHOP_TYPES,
        "nouns": NOUNS,
        "verbs": VERBS,
    }[name]
    return tuple(word for word in words.split() if on_side(word, split))


def made_up_word(rng: np.random.Generator, split: str) -> str:
    """A pronounceable word of one to three syllables, of the right side."""
    while True:
        word = "".join(
            pick(rng, _ONSETS)
            + pick(rng, _VOWELS)
            + (pick(rng, _CODAS) if rng.random() < 0.9 else "")
            for _ in range(1 + int(rng.integers(3)))
        )[:12]
        if len(word) > 1 and on_side(word, split):
            return word


def random_token(rng: np.random.Generator, split: str) -> str:
    """One word of the reading exercise: a real or made-up word, a number, a code, or noise."""
    roll = rng.random()
    if roll < 0.30:
        name = pick(rng, ("goods", "nouns", "verbs", "adjectives", "surnames", "towns"))
        return _cased(rng, pick(rng, vocabulary(name, split)))
    if roll < 0.58:
        return _cased(rng, made_up_word(rng, split))
    if roll < 0.80:
        return _number(rng)
    if roll < 0.92:
        return random_code(rng, 2 + int(rng.integers(8)))
    word = made_up_word(rng, split)
    mark = pick(rng, _MARKS)
    return pick(rng, (word + mark, mark + word, mark + word + mark, mark))


def random_code(rng: np.random.Generator, length: int) -> str:
    alphabet = pick(
        rng,
        (
            string.ascii_uppercase + string.digits,
            string.ascii_letters + string.digits,
            string.digits,
        ),
    )
    return "".join(alphabet[int(i)] for i in rng.integers(0, len(alphabet), size=length))


def phone(rng: np.random.Generator, split: str) -> str:
    a, b, c = (int(rng.integers(200, 999)), int(rng.integers(100, 999)), int(rng.integers(10000)))
    styles = [f"{a}-{b}-{c:04d}", f"({a}) {b}-{c:04d}", f"{a} {b} {c:04d}", f"0{a} {b}{c:04d}"]
    return pick(rng, [f"+1 {a} {b} {c:04d}", f"{a}.{b}.{c:04d}"] if split == "eval" else styles)


def clock(rng: np.random.Generator) -> str:
    hour, minute = int(rng.integers(24)), int(rng.integers(60))
    if rng.random() < 0.3:
        return f"{hour % 12 or 12}:{minute:02d} {'AM' if hour < 12 else 'PM'}"
    return f"{hour:02d}:{minute:02d}"


def sentence(rng: np.random.Generator, split: str) -> str:
    """A sentence of a random pattern; eval has patterns of its own beside the shared ones."""
    patterns = SENTENCES["train"]
    if split == "eval" and rng.random() < 0.5:
        patterns = SENTENCES["eval"]
    pieces = pick(rng, patterns).split("{")
    filled = pieces[0]
    for piece in pieces[1:]:
        slot, _, rest = piece.partition("}")
        filled += _slot(rng, slot, split) + rest
    return filled[0].upper() + filled[1:]


_SLOT_LISTS = {
    "first": "first_names",
    "last": "surnames",
    "town": "towns",
    "goods": "goods",
    "noun": "nouns",
    "adj": "adjectives",
    "verb": "verbs",
}


def _slot(rng: np.random.Generator, slot: str, split: str) -> str:
    if slot in _SLOT_LISTS:
        return pick(rng, vocabulary(_SLOT_LISTS[slot], split))
    if slot == "word":
        return made_up_word(rng, split)
    if slot == "phone":
        return phone(rng, split)
    if slot == "time":
        return clock(rng)
    if slot == "day":
        return pick(rng, DAYS)
    if slot == "num":
        return str(int(rng.integers(2, 100)))
    if slot == "price":
        return f"${rng.integers(1, 90)}.{rng.integers(100):02d}"
    if slot == "code":
        return random_code(rng, 4 + int(rng.integers(4)))
    raise KeyError(slot)


def _cased(rng: np.random.Generator, word: str) -> str:
    roll = rng.random()
    return word.upper() if roll < 0.22 else word.capitalize() if roll < 0.45 else word


def _number(rng: np.random.Generator) -> str:
    whole = int(rng.integers(10 ** (1 + int(rng.integers(5)))))
    cents = int(rng.integers(100))
    return pick(
        rng,
        (
            *(f"{whole}", f"{whole}.{cents:02d}", f"${whole}.{cents:02d}", f"{whole:,}"),
            *(f"{cents:02d}:{cents % 60:02d}", f"{cents}%", f"#{whole}", f"-{whole}", f"{whole}x"),
        ),
    )
